// One session on the GPU: its contexts, step buffers and captured decode step.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engines/tensorrt/decode_graph.h"
#include "engines/tensorrt/plans.h"
#include "engines/tensorrt/step_buffers.h"
#include "sala/engine.h"

namespace sala::tensorrt {

/// Every shard has two contexts, one for each profile: a context's shapes and addresses must not change after its
/// decode step was captured, and switching a profile would do that.
class TensorRtExecution final : public Execution {
 public:
  /// `plans` outlives the execution, as do the caches. Runs one decode step on the empty caches, so that everything
  /// is compiled, loaded and allocated before the first token, then empties them again and captures the step.
  static Expected<std::unique_ptr<Execution>> create(const Plans& plans, std::span<const CacheBinding> caches);

  TensorRtExecution(const TensorRtExecution&) = delete;
  TensorRtExecution& operator=(const TensorRtExecution&) = delete;
  ~TensorRtExecution() override;

  Status run(Profile profile, std::span<const Tensor> inputs, const Tensor& logits) override;

 private:
  struct Contexts {
    Object config[2];      // IRuntimeConfig by profile; null if TensorRT has none
    Object by_profile[2];  // IExecutionContext
  };

  TensorRtExecution(const Plans& plans, std::span<const CacheBinding> caches)
      : plans_(plans), caches_(caches.begin(), caches.end()) {}

  Status open_stream();
  Status create_contexts();
  Expected<Object> create_context(const Shard& shard, Contexts& contexts, Profile profile) const;
  /// Sets what stays for good: addresses, and the shapes of everything that does not depend on the step's tokens.
  Status bind(const Shard& shard, void* context) const;
  Status set_shape(const Shard& shard, void* context, const char* name, const Shape& shape) const;
  Status set_tokens(Profile profile, int64_t tokens);
  Status warm_up();
  Status capture_decode();

  Status stage(std::span<const Tensor> inputs);
  /// Puts a step of `tokens` on the stream: inputs to the GPU, every shard in order, logits back.
  Status enqueue(Profile profile, int64_t tokens) const;
  Status synchronize() const;

  const CacheBinding* find_cache(std::string_view name) const;

  const Plans& plans_;
  std::vector<CacheBinding> caches_;
  std::unique_ptr<StepBuffers> buffers_;
  CUstream stream_ = nullptr;
  std::vector<Contexts> contexts_;  // by shard
  int64_t prefill_tokens_ = 0;      // that the prefill contexts have shapes for
  DecodeGraph decode_graph_;
};

}  // namespace sala::tensorrt
