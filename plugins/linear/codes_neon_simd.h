// Codes of stored weights as bfloat16 numbers, with the tables of NEON. Compiled once per SIMD level.

#pragma once

#include <arm_neon.h>

#include "cpu/simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

/// bfloat16 of 16 e4m3 codes, as their two bytes.
struct Float8Bytes {
  uint8x16_t high, low;

  uint8x16_t first() const { return vzip1q_u8(low, high); }
  uint8x16_t second() const { return vzip2q_u8(low, high); }
  /// Number `word` of `first` or, with half = 1, of `second`.
  static constexpr int order(int half, int word) { return 8 * half + word; }
};

inline Float8Bytes float8_bytes(const uint8_t* from) {
  // Numbers below 2^-6 are multiples of 2^-9, and tables have them: magnitudes 0 to 7. The next eight are as computed.
  const uint8x16_t small_high{0x00, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C,
                              0x3C, 0x3C, 0x3C, 0x3C, 0x3C, 0x3C, 0x3C, 0x3C};
  const uint8x16_t small_low{0x00, 0x00, 0x80, 0xC0, 0x00, 0x20, 0x40, 0x60,
                             0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0};
  const uint8x16_t codes = vld1q_u8(from);
  const uint8x16_t magnitude = vandq_u8(codes, vdupq_n_u8(0x7F));
  const uint8x16_t is_nan = vceqq_u8(magnitude, vdupq_n_u8(0x7F));
  uint8x16_t high = vsraq_n_u8(vdupq_n_u8(0x3C), magnitude, 4);
  high = vorrq_u8(vqtbx1q_u8(high, small_high, magnitude), is_nan);
  return {vbslq_u8(vdupq_n_u8(0x80), codes, high), vqtbx1q_u8(vshlq_n_u8(magnitude, 4), small_low, magnitude)};
}

/// bfloat16 of 32 e2m1 codes: word w of vector v is nibble 4 w + v.
struct Float4Words {
  IntVec vectors[4];
};

inline Float4Words float4_words(const uint8_t* from) {
  const uint8x16_t high_bytes{0x00, 0x3F, 0x3F, 0x3F, 0x40, 0x40, 0x40, 0x40,
                              0x80, 0xBF, 0xBF, 0xBF, 0xC0, 0xC0, 0xC0, 0xC0};
  const uint8x16_t low_bytes{0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0,
                             0x00, 0x00, 0x80, 0xC0, 0x00, 0x40, 0x80, 0xC0};
  const uint8x16_t codes = vld1q_u8(from);
  const uint8x16_t even = vandq_u8(codes, vdupq_n_u8(0x0F)), odd = vshrq_n_u8(codes, 4);
  const uint8x16_t even_low = vqtbl1q_u8(low_bytes, even), even_high = vqtbl1q_u8(high_bytes, even);
  const uint8x16_t odd_low = vqtbl1q_u8(low_bytes, odd), odd_high = vqtbl1q_u8(high_bytes, odd);
  return {{__builtin_bit_cast(IntVec, vtrn1q_u8(even_low, even_high)),
           __builtin_bit_cast(IntVec, vtrn1q_u8(odd_low, odd_high)),
           __builtin_bit_cast(IntVec, vtrn2q_u8(even_low, even_high)),
           __builtin_bit_cast(IntVec, vtrn2q_u8(odd_low, odd_high))}};
}

/// bfloat16 of 16 int8 codes, in order: the upper halves of their float32.
struct Int8Words {
  IntVec vectors[2];
};

inline IntVec words_of_integers(int16x8_t codes) {
  const float32x4_t first = vcvtq_f32_s32(vmovl_s16(vget_low_s16(codes)));
  const float32x4_t second = vcvtq_f32_s32(vmovl_high_s16(codes));
  return __builtin_bit_cast(IntVec, vuzp2q_u16(vreinterpretq_u16_f32(first), vreinterpretq_u16_f32(second)));
}

inline Int8Words int8_words(const uint8_t* from) {
  const int8x16_t codes = vreinterpretq_s8_u8(vld1q_u8(from));
  return {{words_of_integers(vmovl_s8(vget_low_s8(codes))), words_of_integers(vmovl_high_s8(codes))}};
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
