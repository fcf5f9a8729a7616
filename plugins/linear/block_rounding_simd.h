// Rounding to blocks of e4m3 numbers that share a power of two. Compiled once per SIMD level.
//
// sala_export/numerics/block_scales.py defines it: the scale of a block is the least power of two, from 2^-127 up, by
// which its largest magnitude is at most 448, and a block with an infinity or a NaN becomes NaN.

#pragma once

#include "linear/formats_simd.h"
#include "linear/numbers.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

/// The scale of a block of kMxBlock numbers as an e8m0 byte.
inline int32_t block_scale(const float* block) {
  // As integers magnitudes keep their order, and infinities and NaN are above all numbers.
  IntVec largest{};
  for (int i = 0; i < kMxBlock; i += kLanes) {
    const IntVec magnitude = load_int(block + i) & INT32_MAX;
    largest = magnitude > largest ? magnitude : largest;
  }
  int32_t most = 0;
  for (int lane = 0; lane < kLanes; ++lane) most = largest[lane] > most ? largest[lane] : most;
  if (most >= 0x7F800000) return 0xFF;
  // 448 is 1.75 * 2^8: the sum carries into the exponent where the mantissa is above 1.75.
  const int32_t exponent = ((most + 0x1FFFFF) >> 23) - 8;
  return exponent > 0 ? exponent : 0;
}

/// The nearest e4m3 numbers, ties to even, of numbers up to 448.
inline Vec rounded_to_float8(Vec x) {
  const auto bits = __builtin_bit_cast(IntVec, x);
  const IntVec magnitude = bits & INT32_MAX;
  // Three bits of mantissa stay. Below 2^-6 numbers are multiples of 2^-9, the last place of a float near 1.5 * 2^14.
  const IntVec normal = (magnitude + 0x7FFFF + (magnitude >> 20 & 1)) & -0x100000;
  const auto small = __builtin_bit_cast(IntVec, (as_float(magnitude) + 0x1.8p14f) - 0x1.8p14f);
  return as_float((magnitude < (121 << 23) ? small : normal) | (bits & INT32_MIN));
}

/// out = the numbers [first, first + kCount) of a row, rounded; those beyond its columns stay. Both are whole blocks,
/// or `first` is inside of one.
template <int kCount>
inline void round_blocks(const float* row, int64_t first, int64_t columns, float (&out)[kCount]) {
  constexpr int kPart = kCount < kMxBlock ? kCount : kMxBlock;
  for (int i = 0; i < kCount && first + i < columns; i += kPart) {
    const int32_t byte = block_scale(row + (first + i) / kMxBlock * kMxBlock);
    const float scale = from_e8m0(static_cast<uint8_t>(byte));
    const float inverse = float_of_bits(static_cast<uint32_t>(254 - byte) << 23);
    for (int j = i; j < i + kPart; j += kLanes) {
      store(out + j, byte == 0xFF ? broadcast(scale) : rounded_to_float8(load(row + first + j) * inverse) * scale);
    }
  }
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
