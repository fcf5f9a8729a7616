// RMSNormBlockQuantize on the CPU. Equations: sala_export/ops/rms_norm_block_quantize/README.md.

#pragma once

#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"
#include "rms_norm_block_quantize/rms_norm_block_quantize_contract.h"

namespace sala::ops {

/// The call keeps the contract. What is quantised is in float32, and is not rounded to 16 bits before. Always succeeds.
Status rms_norm_block_quantize_cpu(const RMSNormBlockQuantizeSizes& sizes, const RMSNormBlockQuantizeTensors& tensors,
                                   const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::ops
