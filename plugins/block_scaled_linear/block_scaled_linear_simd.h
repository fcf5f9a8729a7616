// The parts of the block-scaled products that are compiled once per SIMD level.

#pragma once

#include "block_scaled_linear/block_scaled_linear_cpu.h"
#include "cpu/simd_level.h"

namespace sala::ops {

/// Rows [first, first + count) of x, as numbers in panels of `panel_rows` rows: [panels, K, panel_rows], with zeros
/// where the last has no row.
struct PackedRows {
  int64_t first;
  int64_t count;
  const float* panels;
};

struct BlockScaledKernels {
  int64_t panel_rows;
  /// Fills the panel of rows from `first` on; `numbers` are K floats of scratch.
  void (*pack)(const BlockScaledProduct& product, int64_t first, float* numbers, float* panel);
  /// Computes outputs [first, first + count) of packed rows; `count` is at most kBlockScaledOutputs.
  void (*multiply)(const BlockScaledProduct& product, int64_t first, int64_t count, const PackedRows& rows,
                   float* scratch);
};

constexpr int64_t kBlockScaledOutputs = 64;
/// Numbers of a weight row that are decoded at a time: those of all outputs stay in the cache.
constexpr int64_t kBlockScaledDepth = 512;

/// Floats of scratch that `multiply` needs for so many rows.
constexpr int64_t block_scaled_scratch_floats(int64_t padded_rows) {
  return kBlockScaledOutputs * (kBlockScaledDepth + padded_rows);
}

#define SALA_DECLARE(level, name)                      \
  namespace name {                                     \
  extern const BlockScaledKernels kBlockScaledKernels; \
  }
SALA_FOR_EACH_SIMD_LEVEL(SALA_DECLARE)
#undef SALA_DECLARE

}  // namespace sala::ops
