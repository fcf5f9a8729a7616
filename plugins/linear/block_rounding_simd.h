// Inputs rounded to blocks of e4m3 numbers that share a power of two, as cpu/block_scales.h defines them. Compiled once
// per SIMD level.

#pragma once

#include "cpu/block_scales.h"
#include "linear/formats_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

/// out = the numbers [first, first + kCount) of a row, rounded; those beyond its columns stay. Both are whole blocks,
/// or `first` is inside of one.
template <int kCount>
inline void round_blocks(const float* row, int64_t first, int64_t columns, float (&out)[kCount]) {
  constexpr int kPart = kCount < kMxBlock ? kCount : kMxBlock;
  for (int i = 0; i < kCount && first + i < columns; i += kPart) {
    const uint32_t byte = scale_byte(row + (first + i) / kMxBlock * kMxBlock);
    const float scale = scale_of_byte(byte);
    const float inverse = scale_of_byte(254 - (byte < 253 ? byte : 253));
    for (int j = i; j < i + kPart; j += kLanes) {
      store(out + j, from_float8_codes(float8_codes(load(row + first + j) * inverse)) * scale);
    }
  }
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
