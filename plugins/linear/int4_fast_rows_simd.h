// Rows of int4 weights: the bytes of their groups, and their scales. Included by sources that are compiled once per
// SIMD level.

#pragma once

#include "linear/int4_fast_simd.h"
#include "linear/scales_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

constexpr int kGroupBytes = 4 * kGroupWords;
constexpr int64_t kGroupNibbles = 2 * kGroupBytes;
constexpr int64_t kAheadBytes = 2048;  // that rows are fetched ahead of their use
constexpr int kGroupVectors = kGroupBytes / kVectorBytes;

/// Where a group of weights lies in a row.
struct Place {
  Place(Int4Groups groups, int64_t group)
      : first_nibble(group * groups.columns % 2),
        offset(group * groups.columns / 2),
        bytes((first_nibble + groups.columns + 1) / 2) {}

  int64_t first_nibble;
  int64_t offset;
  int64_t bytes;
};

/// The bytes of a group, as vectors; zeros take the place of what is beyond it.
struct GroupBytes {
  template <bool kWhole>
  static inline GroupBytes read(const uint8_t* from, int64_t bytes) {
    GroupBytes result;
    if constexpr (kWhole) {
      result.load_all(from);
    } else {
#if defined(__AVX512BW__)
      result.vectors[0] = (IntVec)_mm512_maskz_loadu_epi8(~uint64_t{0} >> (kGroupBytes - bytes), from);
#else
      uint8_t padded[kGroupBytes] = {};
      __builtin_memcpy(padded, from, static_cast<size_t>(bytes));
      result.load_all(padded);
#endif
    }
    return result;
  }

  inline void load_all(const uint8_t* from) {
#pragma GCC unroll 4
    for (int v = 0; v < kGroupVectors; ++v) vectors[v] = load_int(from + v * kVectorBytes);
  }

  IntVec vectors[kGroupVectors];
};

/// Scales of a row. Mostly every group has its own, and then there is no division.
inline int64_t scales_of_row(const Row& row, Int4Groups groups) {
  return row.scale_columns == groups.columns ? groups.count : groups.count * groups.columns / row.scale_columns;
}

/// The scales of all groups of a row.
inline void read_scales(const Row& row, Int4Groups groups, float* scales) {
  const int64_t count = scales_of_row(row, groups);
  decode_scales(row, count, scales);
  if (count == groups.count) return;
  const int64_t together = groups.count / count;
  for (int64_t g = groups.count - 1; g >= 0; --g) scales[g] = scales[g / together];
}

/// Asks for the scales of the row behind this one: the hardware does not foresee so short streams.
inline void prefetch_next_scales(const Row& row, Int4Groups groups) {
  const int64_t bytes = scales_of_row(row, groups) * scale_bytes(row.scale_type);
  for (int64_t i = 0; i < bytes; i += 64) prefetch<3>(static_cast<const uint8_t*>(row.scales), bytes + i);
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
