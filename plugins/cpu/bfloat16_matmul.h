// Matrix products of bfloat16 with sums in float32, for levels whose instruction multiplies pairs of them. Included by
// sources that are compiled once per SIMD level, as simd.h.
//
// The depth of a product goes in pairs: a word of 32 bits holds the numbers 2p and 2p + 1 of a row of A, or of a column
// of B, the even one low.

#pragma once

#include "cpu/matmul.h"
#include "cpu/short_floats.h"

#if defined(__AVX512BF16__)

namespace sala::cpu::SALA_SIMD_LEVEL {

/// The pair p of row i is the word at data + i * row_bytes + p * pair_bytes.
struct PairedLeft {
  const void* data;
  int64_t row_bytes;
  int64_t pair_bytes;
};

/// B as words: the pair p of column j is data[p * stride + j].
struct PairedRows {
  const void* data;
  int64_t stride;

  WordVec at(int64_t pair, int64_t column) const {
    WordVec words;
    __builtin_memcpy(&words, static_cast<const uint32_t*>(data) + pair * stride + column, sizeof words);
    return words;
  }
};

/// B as rows of numbers, which are made pairs on the way. A row after the last counts as zeros.
struct PlainRows {
  const BFloat16* data;
  int64_t stride;
  int64_t rows;

  WordVec at(int64_t pair, int64_t column) const {
    static constexpr BFloat16 kZeros[kLanes] = {};
    const BFloat16* even = data + 2 * pair * stride + column;
    const BFloat16* odd = 2 * pair + 1 < rows ? even + stride : kZeros;
    ShortVec low, high;
    __builtin_memcpy(&low, even, sizeof low);
    __builtin_memcpy(&high, odd, sizeof high);
    return __builtin_bit_cast(
        WordVec, __builtin_shufflevector(low, high, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9,
                                         25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
  }
};

inline Vec add_pair_products(Vec sum, WordVec left, WordVec right) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}

template <int kNumRows, class Right>
static inline void pair_tile_product(PairedLeft a, Right b, int64_t column, float* c, int64_t c_stride, int64_t pairs,
                                     Keep keep) {
  Vec sums[kNumRows];
#pragma GCC unroll 16
  for (int i = 0; i < kNumRows; ++i) {
    sums[i] = keep.factor == nullptr ? Vec{} : load(c + i * c_stride) * keep.factor[i * keep.stride];
  }
  const char* left = static_cast<const char*>(a.data);
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const WordVec right = b.at(pair, column);
#pragma GCC unroll 16
    for (int i = 0; i < kNumRows; ++i) {
      uint32_t word;
      __builtin_memcpy(&word, left + i * a.row_bytes + pair * a.pair_bytes, sizeof word);
      sums[i] = add_pair_products(sums[i], word - WordVec{}, right);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kNumRows; ++i) store(c + i * c_stride, sums[i]);
}

template <int kNumRows, class Right>
static inline void pair_panel_product(PairedLeft a, Right b, int64_t column, float* c, int64_t c_stride, int64_t rows,
                                      int64_t pairs, Keep keep) {
  int64_t i = 0;
  const auto left = [&] {
    return PairedLeft{static_cast<const char*>(a.data) + i * a.row_bytes, a.row_bytes, a.pair_bytes};
  };
  const auto kept = [&] { return Keep{keep.factor == nullptr ? nullptr : keep.factor + i * keep.stride, keep.stride}; };
  for (; i + kNumRows <= rows; i += kNumRows) {
    pair_tile_product<kNumRows>(left(), b, column, c + i * c_stride, c_stride, pairs, kept());
  }
  if constexpr (kNumRows > 1) {
    if (i < rows) {
      pair_panel_product<kNumRows / 2>(left(), b, column, c + i * c_stride, c_stride, rows - i, pairs, kept());
    }
  }
}

/// C = kept C + A B for A [rows, 2 pairs] and B [2 pairs, columns]. `columns` is a multiple of kLanes.
template <class Right>
static inline void pair_matmul(PairedLeft a, Right b, float* c, int64_t c_stride, int64_t rows, int64_t columns,
                               int64_t pairs, Keep keep = {}) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    pair_panel_product<16>(a, b, column, c + column, c_stride, rows, pairs, keep);
  }
}

/// Makes `rows` rows of floats, `stride` apart, to rows of pairs in their place: word p * stride + j holds rows 2p and
/// 2p + 1 of column j, rounded. A row after the last counts as zeros. `columns` is a multiple of kLanes.
static inline void pair_rows_in_place(float* data, int64_t stride, int64_t rows, int64_t columns) {
  for (int64_t pair = 0; 2 * pair < rows; ++pair) {
    const float* even = data + 2 * pair * stride;
    for (int64_t column = 0; column < columns; column += kLanes) {
      const WordVec low = rounded_to_bfloat16(load(even + column));
      const WordVec high = 2 * pair + 1 < rows ? rounded_to_bfloat16(load(even + stride + column)) : WordVec{};
      const WordVec words = low | high << 16;
      __builtin_memcpy(data + pair * stride + column, &words, sizeof words);
    }
  }
}

}  // namespace sala::cpu::SALA_SIMD_LEVEL

#endif
