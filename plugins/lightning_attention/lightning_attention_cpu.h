// LightningAttention on the CPU, in float32 throughout. Equations: sala_export/ops/lightning_attention/README.md.

#pragma once

#include <cstdint>

#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"

namespace sala::ops {

struct LightningAttentionSizes {
  int64_t batch;
  int64_t tokens;
  int64_t num_heads;
  int64_t head_dim;
  float eps;
  float scale;
};

/// The tensors of the contract (schema.py), dense and row-major. `state_out` may be `state`: it is then updated in
/// place, otherwise `state` is left as it was. No other overlap is allowed.
struct LightningAttentionTensors {
  const float* qkvz;
  const float* q_norm;
  const float* k_norm;
  const float* o_norm;
  const float* rope_cos_sin;
  const float* state;
  float* y;
  float* state_out;
};

/// Fails on sizes outside the contract, on a head_dim that is no multiple of 32 (a limit of this implementation) and,
/// with outputs undefined, when there is no memory for scratch, which is bounded whatever `tokens` is.
/// The result does not depend on the number of threads.
Status lightning_attention_cpu(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors,
                               const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::ops
