// BlockQuantize on the CPU. Equations: sala_export/ops/block_quantize/README.md.

#pragma once

#include "block_quantize/block_quantize_contract.h"
#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"

namespace sala::ops {

/// The call keeps the contract. What is quantised is in float32, and is not rounded to 16 bits before. Always succeeds.
Status block_quantize_cpu(const BlockQuantizeSizes& sizes, const BlockQuantizeTensors& tensors,
                          const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::ops
