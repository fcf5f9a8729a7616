// Matrices of vectors that are brought into another order in registers. Compiled once per SIMD level.

#pragma once

#include "linear/formats_simd.h"

#if defined(__AVX512F__)

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

/// One stage of a transposition: exchanges the blocks of kBlock lanes that lie off the diagonal.
template <int kBlock>
inline __attribute__((always_inline)) void exchange_blocks(Vec (&rows)[kLanes]) {
  const IntVec lanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const IntVec is_odd = (lanes & kBlock) != 0;
  const auto upper = __builtin_bit_cast(__m512i, is_odd ? lanes + (kLanes - kBlock) : lanes);
  const auto lower = __builtin_bit_cast(__m512i, is_odd ? lanes + kLanes : lanes + kBlock);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kBlock) != 0) continue;
    const Vec a = rows[i], b = rows[i + kBlock];
    rows[i] = _mm512_permutex2var_ps(a, upper, b);
    rows[i + kBlock] = _mm512_permutex2var_ps(a, lower, b);
  }
}

/// Lane j of row i becomes lane i of row j.
inline __attribute__((always_inline)) void transpose_lanes(Vec (&rows)[kLanes]) {
  exchange_blocks<8>(rows);
  exchange_blocks<4>(rows);
  exchange_blocks<2>(rows);
  exchange_blocks<1>(rows);
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL

#elif defined(__aarch64__)

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

/// sums[token][row] of what products of matrices have summed: for two tokens and two rows a vector of (token, row) (0,
/// 0), (0, 1), (1, 0) and (1, 1).
template <class Vector, int kTokens>
inline __attribute__((always_inline)) void order_squares(const Vector (&squares)[kTokens / 2][kLanes],
                                                         Vector (&sums)[kTokens][2]) {
#pragma GCC unroll 6
  for (int t = 0; t < kTokens / 2; ++t) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Vector a = squares[t][2 * half], b = squares[t][2 * half + 1];
      sums[2 * t][half] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
      sums[2 * t + 1][half] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    }
  }
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL

#endif
