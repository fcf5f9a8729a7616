// LightningAttention on the CPU, in float32 throughout. Equations: sala_export/ops/lightning_attention/README.md.

#pragma once

#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"
#include "lightning_attention/lightning_attention_contract.h"

namespace sala::ops {

/// The call keeps the contract. Fails on a head_dim that is no multiple of 32 (a limit of this implementation) and,
/// with outputs undefined, when there is no memory for scratch, which is bounded whatever T is. A `state` with a
/// `state_out` elsewhere is left as it was. The result does not depend on the number of threads.
Status lightning_attention_cpu(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors,
                               const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::ops
