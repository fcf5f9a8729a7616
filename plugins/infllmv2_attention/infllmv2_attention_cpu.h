// InfLLMv2Attention on the CPU, in float32 with caches of float32, bfloat16 or float16. Equations:
// sala_export/ops/infllmv2_attention/README.md.

#pragma once

#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"
#include "infllmv2_attention/infllmv2_attention_contract.h"

namespace sala::ops {

/// The sizes keep the contract. Fails on lengths that do not, on a head_dim that is no multiple of 16 or too many query
/// heads for a key head (limits of this implementation) and, with outputs undefined, when there is no memory for
/// scratch. Where a new cache lies elsewhere than the old one, the whole cache is copied first, so that every element
/// of the output is defined, and the input is left as it was. Scratch does not grow with the context. The result does
/// not depend on the number of threads.
Status infllmv2_attention_cpu(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors,
                              const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::ops
