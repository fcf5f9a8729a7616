// BlockScaledLinear on the CPU, and the product that BlockScaledLinearAdd shares with it. Equations:
// sala_export/ops/block_scaled_linear/README.md.

#pragma once

#include "block_scaled_linear/block_scaled_linear_contract.h"
#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"

namespace sala::ops {

/// y = x W^T, or stream + factor x W^T where there is a stream. The rows are those of all batch entries.
struct BlockScaledProduct {
  const uint8_t* x;              // [rows, K]
  const int32_t* x_scales;       // [K / 128, rows]
  const uint8_t* weight;         // [N, K]
  const int32_t* weight_scales;  // [K / 128, N]
  const float* stream;           // [rows, N] or null
  float factor;
  float* y;  // [rows, N]
  int64_t rows;
  int64_t K;
  int64_t N;
};

/// Sums in float32 over the exact numbers of the operands. The bits of a row depend neither on the other rows nor on
/// the number of threads. Fails, with y undefined, when there is no memory for scratch, which is bounded whatever T is.
Status block_scaled_product(const BlockScaledProduct& product, const cpu::ParallelFor& parallel, cpu::SimdLevel level);

/// The call keeps the contract. Fails as `block_scaled_product`.
Status block_scaled_linear_cpu(const BlockScaledLinearSizes& sizes, const BlockScaledLinearTensors& tensors,
                               const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::ops
