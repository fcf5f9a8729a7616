// BlockScaledLinearAdd on the CPU. Equations: sala_export/ops/block_scaled_linear_add/README.md.

#pragma once

#include "block_scaled_linear_add/block_scaled_linear_add_contract.h"
#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"

namespace sala::ops {

/// The call keeps the contract. Fails as `block_scaled_product`.
Status block_scaled_linear_add_cpu(const BlockScaledLinearAddSizes& sizes, const BlockScaledLinearAddTensors& tensors,
                                   const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::ops
