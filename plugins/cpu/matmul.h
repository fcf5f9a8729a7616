// Matrix products on register tiles. Included by sources that are compiled once per SIMD level, as simd.h.

#pragma once

#include "cpu/simd.h"

namespace sala::cpu::SALA_SIMD_LEVEL {

/// a(i, k) = data[i * row_stride + k * depth_stride]; transposing costs nothing, since single elements are broadcast.
struct Left {
  const float* data;
  int64_t row_stride;
  int64_t depth_stride;
};

/// Rows that lie `stride` apart, their elements next to one another.
struct Rows {
  const float* data;
  int64_t stride;
};

/// What is in C before the product is added: nothing, or C with row i multiplied by factor[i * stride].
struct Keep {
  const float* factor = nullptr;  // null: C is overwritten
  int64_t stride = 0;
};

constexpr int kTileRows = kRegisters == 32 ? 8 : 4;  // rows x 2 vectors of sums, operands in the rest
constexpr int kTileColumns = 2 * kLanes;

// Every element of C is the same chain of multiply-adds whatever tile it falls in: equal inputs give equal bits.
template <int kNumRows, int kNumVectors>
static inline void tile_product(Left a, Rows b, float* c, int64_t c_stride, int64_t depth, Keep keep) {
  Vec sums[kNumRows][kNumVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kNumRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kNumVectors; ++j) {
      sums[i][j] = keep.factor == nullptr ? Vec{} : load(c + i * c_stride + j * kLanes) * keep.factor[i * keep.stride];
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec right[kNumVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kNumVectors; ++j) right[j] = load(b.data + k * b.stride + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kNumRows; ++i) {
      const float left = a.data[i * a.row_stride + k * a.depth_stride];
#pragma GCC unroll 2
      for (int j = 0; j < kNumVectors; ++j) sums[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kNumRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kNumVectors; ++j) store(c + i * c_stride + j * kLanes, sums[i][j]);
  }
}

template <int kNumRows, int kNumVectors>
static inline void panel_product(Left a, Rows b, float* c, int64_t c_stride, int64_t rows, int64_t depth, Keep keep) {
  int64_t i = 0;
  for (; i + kNumRows <= rows; i += kNumRows) {
    const Left a_rows{a.data + i * a.row_stride, a.row_stride, a.depth_stride};
    const Keep keep_rows{keep.factor == nullptr ? nullptr : keep.factor + i * keep.stride, keep.stride};
    tile_product<kNumRows, kNumVectors>(a_rows, b, c + i * c_stride, c_stride, depth, keep_rows);
  }
  if constexpr (kNumRows > 1) {
    const Left a_rest{a.data + i * a.row_stride, a.row_stride, a.depth_stride};
    const Keep keep_rest{keep.factor == nullptr ? nullptr : keep.factor + i * keep.stride, keep.stride};
    if (i < rows) {
      panel_product<kNumRows / 2, kNumVectors>(a_rest, b, c + i * c_stride, c_stride, rows - i, depth, keep_rest);
    }
  }
}

/// C = kept C + A B for A [rows, depth] and B [depth, columns]. `columns` is a multiple of kLanes; nothing outside the
/// matrices is read or written.
static inline void matmul(Left a, Rows b, float* c, int64_t c_stride, int64_t rows, int64_t columns, int64_t depth,
                          Keep keep = {}) {
  int64_t j = 0;
  for (; j + kTileColumns <= columns; j += kTileColumns) {
    panel_product<kTileRows, 2>(a, {b.data + j, b.stride}, c + j, c_stride, rows, depth, keep);
  }
  if (j < columns) {
    panel_product<2 * kTileRows, 1>(a, {b.data + j, b.stride}, c + j, c_stride, rows, depth, keep);
  }
}

/// to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns; `columns` is a multiple of 4.
inline void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                      int64_t to_stride) {
  using Four = float __attribute__((vector_size(16)));
  const auto load4 = [](const float* at) {
    Four value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
  };
  const auto store4 = [](float* at, Four value) { __builtin_memcpy(at, &value, sizeof value); };
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    for (int64_t j = 0; j < columns; j += 4) {
      const float* block = from + i * from_stride + j;
      const Four r0 = load4(block), r1 = load4(block + from_stride);
      const Four r2 = load4(block + 2 * from_stride), r3 = load4(block + 3 * from_stride);
      const Four low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5),
                 high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
      const Four low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5),
                 high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
      float* out = to + j * to_stride + i;
      store4(out, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
      store4(out + to_stride, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
      store4(out + 2 * to_stride, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
      store4(out + 3 * to_stride, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
    }
  }
  for (; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  }
}

}  // namespace sala::cpu::SALA_SIMD_LEVEL
