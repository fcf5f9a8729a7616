// Vectors of 32-bit words: nibbles, stores and a transposition. Included by sources that are compiled once per SIMD
// level.

#pragma once

#include "cpu/simd.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

constexpr int32_t kNibbles = 0x0F0F0F0F;

inline IntVec low_nibbles(IntVec bytes) { return bytes & kNibbles; }

inline IntVec high_nibbles(IntVec bytes) {
#if defined(__aarch64__)
  return (IntVec)vshrq_n_u8((uint8x16_t)bytes, 4);
#else
  return (bytes >> 4) & kNibbles;
#endif
}

inline void store_words(void* to, IntVec value) { __builtin_memcpy(to, &value, sizeof value); }

inline IntVec broadcast_word(int32_t value) { return value - IntVec{}; }

#if defined(__AVX512F__)
/// The 64-bit halves of every 128 bits, low or high, of two vectors: first, second, first, second...
template <int kHalf>
inline IntVec interleave_pairs(IntVec a, IntVec b) {
  constexpr int h = 2 * kHalf;
  return __builtin_shufflevector(a, b, h, h + 1, h + 16, h + 17, h + 4, h + 5, h + 20, h + 21, h + 8, h + 9, h + 24,
                                 h + 25, h + 12, h + 13, h + 28, h + 29);
}

/// The same with single words of a half.
template <int kHalf>
inline IntVec interleave_words(IntVec a, IntVec b) {
  constexpr int h = 2 * kHalf;
  return __builtin_shufflevector(a, b, h, h + 16, h + 1, h + 17, h + 4, h + 20, h + 5, h + 21, h + 8, h + 24, h + 9,
                                 h + 25, h + 12, h + 28, h + 13, h + 29);
}

/// Every second 128 bits of two vectors, from the first or the second on.
template <int kFirst>
inline IntVec every_second_quarter(IntVec a, IntVec b) {
  constexpr int f = 4 * kFirst;
  return __builtin_shufflevector(a, b, f, f + 1, f + 2, f + 3, f + 8, f + 9, f + 10, f + 11, f + 16, f + 17, f + 18,
                                 f + 19, f + 24, f + 25, f + 26, f + 27);
}

/// Word j of all 16 vectors becomes vector j.
inline void transpose_words(IntVec (&r)[16]) {
  IntVec t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = interleave_words<0>(r[i], r[i + 1]);
    t[i + 1] = interleave_words<1>(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // word k of each quarter of four rows
    r[i] = interleave_pairs<0>(t[i], t[i + 2]);
    r[i + 1] = interleave_pairs<1>(t[i], t[i + 2]);
    r[i + 2] = interleave_pairs<0>(t[i + 1], t[i + 3]);
    r[i + 3] = interleave_pairs<1>(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // of the even quarters of eight rows, then of the odd ones
    t[i] = every_second_quarter<0>(r[i], r[i + 4]);
    t[i + 4] = every_second_quarter<1>(r[i], r[i + 4]);
    t[i + 8] = every_second_quarter<0>(r[i + 8], r[i + 12]);
    t[i + 12] = every_second_quarter<1>(r[i + 8], r[i + 12]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = every_second_quarter<0>(t[i], t[i + 8]);
    r[i + 4] = every_second_quarter<0>(t[i + 4], t[i + 12]);
    r[i + 8] = every_second_quarter<1>(t[i], t[i + 8]);
    r[i + 12] = every_second_quarter<1>(t[i + 4], t[i + 12]);
  }
}

#elif defined(__aarch64__)
/// Word j of all 4 vectors becomes vector j.
inline void transpose_words(IntVec (&r)[4]) {
  const IntVec low01 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
  const IntVec low23 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const IntVec high01 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const IntVec high23 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  r[0] = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
  r[1] = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
  r[2] = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
  r[3] = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}
#endif

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
