// Products y = x W^T on the CPU, straight from the bytes of a checkpoint: no copy of the weights is made.

#pragma once

#include <cstdint>
#include <span>

#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"

namespace sala::linear {

/// How the numbers of a weight are stored.
enum class WeightKind : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat8, kMxfp8, kInt8, kInt4, kNvfp4 };

/// Neighbours along a row of kMxfp8 that share a scale, of weights and of inputs.
constexpr int64_t kMxBlock = 32;

/// Type of the scales beside the codes; kNone for weights that are numbers by themselves.
enum class ScaleType : uint8_t { kNone, kFloat32, kBFloat16, kFloat16, kFloat8, kE8m0 };

/// A weight [rows, K] as a checkpoint stores it, row after row, at any address. `scales` is a matrix [row_blocks,
/// column_blocks], one scale for each of so many equal blocks of the weight; both counts are 1 if there are none.
struct StoredWeight {
  int64_t rows;
  const void* codes;
  const void* scales;
  ScaleType scale_type;
  int64_t row_blocks;
  int64_t column_blocks;
};

/// y = x W^T, W the rows of all weights one after another; all memory is the caller's.
///
/// kMxfp8 has one scale for each kMxBlock columns of a row, and its inputs are rounded likewise before the product, as
/// sala_export/numerics/block_scales.py says. So the numbers of both sides are those of bfloat16, and all arithmetic
/// gives one result up to the order of sums. Only numbers below 2^-126 may count as 0 unless it is exact.
///
/// Levels with instructions for products of bfloat16 use them unless it is exact, and these take numbers below 2^-126
/// for 0. Those of x86-64 round sums to nearest. BFDOT and BFMMLA of Arm round them to odd, which is off by less than
/// one unit in the last place.
struct LinearCall {
  const float* x;  // [tokens, columns]
  int64_t tokens;
  int64_t columns;  // K
  std::span<const StoredWeight> weights;
  WeightKind kind;     // of all weights
  float global_scale;  // factor of all weights; 1 but for kNvfp4
  bool exact;          // fp32 over the dequantised numbers; else 16-bit inputs, and 8-bit inputs for kInt4
  bool silu_mul;       // y = u sigmoid(u) v, u the first half of the columns of x W^T and v the second
  float* y;            // [tokens, rows of all weights], half as many columns with silu_mul
};

/// Bytes of one row of codes; `columns` is even for kInt4 and kNvfp4.
int64_t row_bytes(WeightKind kind, int64_t columns) noexcept;

/// Numbers in so many bytes of a row.
int64_t columns_of(WeightKind kind, int64_t bytes);

/// Serves a call on the threads of `parallel`. Equal inputs give equal bits, whatever the number of threads. Fails if
/// there is no memory for scratch, or if the rows or columns of a weight are no multiple of its blocks.
Status linear_cpu(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::linear
