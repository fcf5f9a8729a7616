// Two ways to run the rows of a chunk, after the chunk was appended to the caches.

#pragma once

#include "common/result.h"
#include "cpu/parallel.h"
#include "infllmv2_attention/query_row.h"

namespace sala::ops {

/// Chunks of at most so many tokens are too few to occupy the threads, so their rows are split along the context.
constexpr int64_t kDecodeTokens = 4;

/// Tiles of neighbouring rows go through the blocks together, one thread to a tile.
Status run_prefill(const Plan& plan, const InfLLMv2AttentionTensors& tensors, const cpu::ParallelFor& parallel);

/// Every row is cut along its context into parts for all threads. The cut depends on the sizes alone.
Status run_decode(const Plan& plan, const InfLLMv2AttentionTensors& tensors, const cpu::ParallelFor& parallel);

/// Where token `token` and key head `kv_head` of batch entry `batch` find their data in the tensors.
class RowView {
 public:
  RowView(const Plan& plan, const InfLLMv2AttentionTensors& tensors, int64_t batch, int64_t kv_head);

  const KeyHead& keys() const { return keys_; }
  void start(QueryRow& row, int64_t token) const;
  void finish(const QueryRow& row, int64_t token, SoftmaxSum sum) const;

 private:
  const Plan* plan_;
  KeyHead keys_;
  const float* q_;     // of token 0
  const float* gate_;  // of token 0
  float* y_;           // of token 0
  int64_t past_length_;
  bool is_sparse_;
};

}  // namespace sala::ops
