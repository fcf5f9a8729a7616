// Products of nibbles and int8 codes on NEON: with the instructions of ARMv8.0, with dot products of four bytes, or
// with products of matrices. Compiled once per SIMD level.

#pragma once

#include <arm_neon.h>

#include "linear/int4_fast_panels_simd.h"
#include "linear/int4_fast_words_simd.h"
#include "linear/transpose_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

inline IntVec neon_dot4(IntVec sum, IntVec nibbles, IntVec codes) {
  const auto n = (int8x16_t)nibbles, c = (int8x16_t)codes;
#if defined(__ARM_FEATURE_DOTPROD)
  return (IntVec)vdotq_s32((int32x4_t)sum, n, c);
#else
  const int16x8_t first = vmull_s8(vget_low_s8(n), vget_low_s8(c)), second = vmull_high_s8(n, c);
  return (IntVec)vpadalq_s16((int32x4_t)sum, vpaddq_s16(first, second));
#endif
}

/// Writes the two words of four rows to their place in a panel.
inline void store_nibbles(int32_t* to, IntVec bytes) {
  const IntVec low = low_nibbles(bytes), high = high_nibbles(bytes);
  if constexpr (kWordsTogether == 2) {
    store_words(to, __builtin_shufflevector(low, high, 0, 4, 1, 5));
    store_words(to + kLanes, __builtin_shufflevector(low, high, 2, 6, 3, 7));
  } else {
    store_words(to, low);
    store_words(to + kPanelRows, high);
  }
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
/// dots[token][row] = one group's products of kTokens tokens, plus the tokens' bases. An instruction multiplies the
/// eight codes of two tokens with the eight nibbles of two rows.
template <int kTokens>
inline void group_dots(const int32_t* nibbles, int64_t words, const int32_t* codes, const int32_t* bases,
                       IntVec (&dots)[kTokens][2]) {
  IntVec squares[kTokens / 2][kLanes];  // (token, row): (0, 0), (0, 1), (1, 0), (1, 1)
#pragma GCC unroll 6
  for (int t = 0; t < kTokens / 2; ++t) {
#pragma GCC unroll 4
    for (int r = 0; r < kLanes; ++r) {
      squares[t][r] = IntVec{bases[2 * t], bases[2 * t], bases[2 * t + 1], bases[2 * t + 1]};
    }
  }
  for (int64_t w = 0; w < words; w += 2) {
    IntVec rows[kLanes];
#pragma GCC unroll 4
    for (int r = 0; r < kLanes; ++r) rows[r] = load_int(nibbles + w * kPanelRows + r * kLanes);
#pragma GCC unroll 6
    for (int t = 0; t < kTokens / 2; ++t) {
      const auto tokens = (int8x16_t)load_int(codes + w * kTileTokens + t * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kLanes; ++r) {
        squares[t][r] = (IntVec)vmmlaq_s32((int32x4_t)squares[t][r], tokens, (int8x16_t)rows[r]);
      }
    }
  }
  order_squares<IntVec, kTokens>(squares, dots);
}
#elif defined(__ARM_FEATURE_DOTPROD)
/// dots[token][row] = one group's products of kTokens tokens, plus the tokens' bases.
template <int kTokens>
inline void group_dots(const int32_t* nibbles, int64_t words, const int32_t* codes, const int32_t* bases,
                       IntVec (&dots)[kTokens][2]) {
#pragma GCC unroll 12
  for (int t = 0; t < kTokens; ++t) dots[t][0] = dots[t][1] = broadcast_word(bases[t]);
  for (int64_t w = 0; w < words; ++w) {
    const auto first = (int8x16_t)load_int(nibbles + w * kPanelRows);
    const auto second = (int8x16_t)load_int(nibbles + w * kPanelRows + kLanes);
#pragma GCC unroll 3
    for (int t = 0; t < kTokens; t += kLanes) {
      const auto four = (int8x16_t)load_int(codes + w * kTileTokens + t);
      const auto add = [&](IntVec(&sums)[2], auto dot) {
        sums[0] = (IntVec)dot((int32x4_t)sums[0], first);
        sums[1] = (IntVec)dot((int32x4_t)sums[1], second);
      };
      add(dots[t], [&](int32x4_t sum, int8x16_t rows) { return vdotq_laneq_s32(sum, rows, four, 0); });
      add(dots[t + 1], [&](int32x4_t sum, int8x16_t rows) { return vdotq_laneq_s32(sum, rows, four, 1); });
      add(dots[t + 2], [&](int32x4_t sum, int8x16_t rows) { return vdotq_laneq_s32(sum, rows, four, 2); });
      add(dots[t + 3], [&](int32x4_t sum, int8x16_t rows) { return vdotq_laneq_s32(sum, rows, four, 3); });
    }
  }
}
#endif

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
