// Numbers of 16 bits, and vectors of float that are read from them and rounded to them. Included by sources that are
// compiled once per SIMD level, as simd.h.

#pragma once

#include "cpu/simd.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace sala::cpu {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

}  // namespace sala::cpu

namespace sala::cpu::SALA_SIMD_LEVEL {

using WordVec = uint32_t __attribute__((vector_size(kVectorBytes)));
using ShortVec = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

inline WordVec load_words(const void* from) {
  ShortVec value;
  __builtin_memcpy(&value, from, sizeof value);
  return __builtin_convertvector(value, WordVec);
}

inline void store_low_halves(void* to, WordVec words) {
  const ShortVec value = __builtin_convertvector(words, ShortVec);
  __builtin_memcpy(to, &value, sizeof value);
}

inline Vec load(const BFloat16* from) { return __builtin_bit_cast(Vec, load_words(from) << 16); }

inline Vec load(const Float16* from) {
#if defined(__AVX512F__)
  __m256i value;
  __builtin_memcpy(&value, from, sizeof value);
  // With a mask of all lanes, since GCC 12 warns of the form without one (its own header leaves a vector unset).
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, value);
#elif defined(__aarch64__)
  float16x4_t value;
  __builtin_memcpy(&value, from, sizeof value);
  return vcvt_f32_f16(value);
#else
  // The exponent is moved by a product, which also makes normal numbers of subnormal ones.
  const WordVec words = load_words(from);
  const WordVec magnitude = (words & 0x7fffu) << 13;
  const WordVec scaled = __builtin_bit_cast(WordVec, __builtin_bit_cast(Vec, magnitude) * 0x1p112f);
  const WordVec special = magnitude >= (0x7c00u << 13) ? scaled | 0x7f800000u : scaled;
  return __builtin_bit_cast(Vec, special | (words & 0x8000u) << 16);
#endif
}

/// The bits of a float, rounded to its upper half; to nearest, ties to even. NaN stays NaN.
inline WordVec rounded_to_bfloat16(Vec value) {
  const WordVec bits = __builtin_bit_cast(WordVec, value);
  const WordVec rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  return ((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded) >> 16;
}

/// `value` with the precision of bfloat16.
inline Vec as_bfloat16(Vec value) { return __builtin_bit_cast(Vec, rounded_to_bfloat16(value) << 16); }

inline void store(BFloat16* to, Vec value) { store_low_halves(to, rounded_to_bfloat16(value)); }

inline void store(Float16* to, Vec value) {
#if defined(__aarch64__)
  const float16x4_t rounded = vcvt_f16_f32(value);
  __builtin_memcpy(to, &rounded, sizeof rounded);
#else
  const WordVec bits = __builtin_bit_cast(WordVec, value);
  const WordVec magnitude = bits & 0x7fffffffu;
  WordVec result = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // Below 2^-14 the last bit of float16 is that of a float in [0.5, 1): adding 0.5 rounds there.
  const WordVec small = __builtin_bit_cast(WordVec, __builtin_bit_cast(Vec, magnitude) + 0.5f) - 0x3f000000u;
  result = magnitude < 0x38800000u ? small : result;
  result = magnitude >= 0x477ff000u ? 0x7c00u - WordVec{} : result;
  result = magnitude > 0x7f800000u ? 0x7e00u - WordVec{} : result;
  store_low_halves(to, result | (bits >> 16 & 0x8000u));
#endif
}

}  // namespace sala::cpu::SALA_SIMD_LEVEL
