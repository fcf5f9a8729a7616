// InfLLMv2Attention on the CPU, in float32 throughout. Equations: sala_export/ops/infllmv2_attention/README.md.

#pragma once

#include <cstdint>

#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"

namespace sala::ops {

struct InfLLMv2AttentionSizes {
  int64_t batch;
  int64_t tokens;
  int64_t capacity;     // of k_cache and v_cache, in tokens
  int64_t k1_capacity;  // in compressed keys
  int64_t k2_capacity;
  int64_t num_heads;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t kernel_size;
  int64_t kernel_stride;
  int64_t block_size;
  int64_t topk;
  int64_t window_size;
  int64_t init_blocks;
  int64_t dense_len;
  float scale;
};

/// The tensors of the contract (schema.py), dense and row-major. Each `*_out` may be its cache: it is then updated in
/// place. Otherwise the whole cache is copied first, so that every element of the output is defined, and the input is
/// left as it was. No other overlap is allowed.
struct InfLLMv2AttentionTensors {
  const float* qkvg;
  const int32_t* past_length;
  const int32_t* context_length;
  const float* k_cache;
  const float* v_cache;
  const float* k1_cache;
  const float* k2_cache;
  float* y;
  float* k_cache_out;
  float* v_cache_out;
  float* k1_cache_out;
  float* k2_cache_out;
};

/// Fails on sizes or lengths outside the contract, on a head_dim that is no multiple of 16 (a limit of this
/// implementation) and, with outputs undefined, when there is no memory for scratch. Scratch does not grow with the
/// context. The result does not depend on the number of threads.
Status infllmv2_attention_cpu(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors,
                              const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::ops
