// The parts of LightningAttention that are compiled once per SIMD level.

#pragma once

#include <cstdint>

#include "cpu/simd_level.h"
#include "lightning_attention/lightning_attention_cpu.h"

namespace sala::ops {

constexpr int64_t kLightningChunkTokens = 64;

struct LightningKernels {
  /// Tokens [first, last) of one head: state_out takes the place of `state`, and y receives o before norm and gate.
  void (*run_head)(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors, const float* state,
                   int64_t batch, int64_t head, int64_t first, int64_t last, float* scratch);
  /// Output norm and gate of one token, in place in y.
  void (*finish_token)(const LightningAttentionSizes& sizes, const LightningAttentionTensors& tensors, int64_t batch,
                       int64_t token);
};

/// Floats of scratch that `run_head` needs.
int64_t lightning_scratch_floats(const LightningAttentionSizes& sizes);

#define SALA_DECLARE(level, name)                  \
  namespace name {                                 \
  extern const LightningKernels kLightningKernels; \
  }
SALA_FOR_EACH_SIMD_LEVEL(SALA_DECLARE)
#undef SALA_DECLARE

}  // namespace sala::ops
