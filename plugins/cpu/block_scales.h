// MXFP8: e4m3 codes, and for each 32 of them a power of two, as an e8m0 byte. sala_export/numerics/block_scales.py is
// the definition, bit for bit. Included by sources that are compiled once per SIMD level, as simd.h.

#pragma once

#include "cpu/simd.h"

namespace sala::cpu {

constexpr int64_t kBlockNumbers = 32;  // share a scale
constexpr int64_t kWordNumbers = 128;  // have their scales in a word, the first in its low bits

}  // namespace sala::cpu

namespace sala::cpu::SALA_SIMD_LEVEL {

using HalfVec = uint16_t __attribute__((vector_size(2 * kLanes)));
using ByteVec = uint8_t __attribute__((vector_size(kLanes)));

// In two steps: of one from bytes to words GCC 12 makes single numbers.
static inline IntVec load_bytes(const uint8_t* from) {
  ByteVec bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, HalfVec), IntVec);
}

static inline void store_low_bytes(uint8_t* to, IntVec words) {
  const ByteVec bytes = __builtin_convertvector(__builtin_convertvector(words, HalfVec), ByteVec);
  __builtin_memcpy(to, &bytes, sizeof bytes);
}

/// 2^(byte - 127), or NaN for 255.
static inline float scale_of_byte(uint32_t byte) {
  uint32_t bits = byte << 23;
  if (byte == 0) bits = 1U << 22;
  if (byte == 255) bits = 0x7FC00000U;
  return __builtin_bit_cast(float, bits);
}

/// The byte of the least power of two by which all numbers of a block are at most 448; 255 if one is infinite or NaN.
static inline uint32_t scale_byte(const float* block) {
  // As integers magnitudes keep their order, and infinities and NaN are above all numbers.
  IntVec lanes{};
  for (int64_t i = 0; i < kBlockNumbers; i += kLanes) {
    const IntVec magnitude = load_int(block + i) & 0x7FFFFFFF;
    lanes = magnitude > lanes ? magnitude : lanes;
  }
  int32_t largest = 0;
  for (int lane = 0; lane < kLanes; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
  if (largest >= 0x7F800000) return 255;
  // 448 is 1.75 * 2^8: the sum carries into the exponent where the mantissa is above 1.75.
  const int32_t exponent = ((largest + 0x1FFFFF) >> 23) - 8;
  return exponent > 0 ? static_cast<uint32_t>(exponent) : 0;
}

/// The nearest e4m3 numbers, ties to even, 448 for what is above it; in the low bytes.
static inline IntVec float8_codes(Vec value) {
  const IntVec bits = __builtin_bit_cast(IntVec, value);
  const IntVec given = bits & 0x7FFFFFFF;
  const IntVec magnitude = given > 0x43E00000 ? (IntVec{} + 0x43E00000) : given;  // 448
  IntVec code = (magnitude - (120 << 23) + 0x7FFFF + (magnitude >> 20 & 1)) >> 20;
  // Below 2^-6 codes count multiples of 2^-9, the last bit of a float in [2^14, 2^15): adding 2^14 rounds there.
  const IntVec small = __builtin_bit_cast(IntVec, __builtin_bit_cast(Vec, magnitude) + 0x1p14f) - 0x46800000;
  code = magnitude < 0x3C800000 ? small : code;
  code = given > 0x7F800000 ? (IntVec{} + 0x7F) : code;
  return code | (bits >> 24 & 0x80);
}

/// Quantises 128 numbers, and returns the word of their scales.
static inline int32_t quantize_word(const float* numbers, uint8_t* codes) {
  uint32_t word = 0;
  for (int64_t block = 0; block < kWordNumbers / kBlockNumbers; ++block) {
    const float* from = numbers + block * kBlockNumbers;
    const uint32_t byte = scale_byte(from);
    word |= byte << (8 * block);
    const float inverse = scale_of_byte(254 - (byte < 253 ? byte : 253));
    for (int64_t i = 0; i < kBlockNumbers; i += kLanes) {
      store_low_bytes(codes + block * kBlockNumbers + i, float8_codes(load(from + i) * inverse));
    }
  }
  return static_cast<int32_t>(word);
}

}  // namespace sala::cpu::SALA_SIMD_LEVEL
