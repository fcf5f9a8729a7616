// One session, or one batch, on the GPU: its contexts, step buffers and captured decode step.

#pragma once

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engines/tensorrt/decode_graph.h"
#include "engines/tensorrt/loaded_plan.h"
#include "engines/tensorrt/step_buffers.h"
#include "sala/engine.h"

namespace sala::tensorrt {

/// A session has two contexts, one for each profile: a context's shapes and addresses must not change after its decode
/// step was captured, and switching a profile would do that. A batch only decodes, and has that context alone.
class TensorRtExecution final : public Execution {
 public:
  /// `plan` outlives the execution, as do the caches. `buffers` are shared with other executions of the plan. Runs one
  /// decode step on empty caches, so that everything is compiled, loaded and allocated before the first token, then
  /// captures the step. On caches in use the first step takes the place of that one.
  static Expected<std::unique_ptr<Execution>> create(const LoadedPlan& plan, std::shared_ptr<StepBuffers> buffers,
                                                     std::span<const CacheBinding> caches, CacheContents contents);

  TensorRtExecution(const TensorRtExecution&) = delete;
  TensorRtExecution& operator=(const TensorRtExecution&) = delete;
  ~TensorRtExecution() override;

  Status reserve_rows(int64_t rows) override;
  Status run(Profile profile, const StepInputs& step, std::span<float> logits) override;

 private:
  struct Context {
    Object config;   // IRuntimeConfig; null if TensorRT has none
    Object context;  // IExecutionContext
  };

  TensorRtExecution(const LoadedPlan& plan, std::shared_ptr<StepBuffers> buffers, std::span<const CacheBinding> caches)
      : plan_(plan),
        caches_(caches.begin(), caches.end()),
        batch_(caches.empty() ? 1 : caches[0].shape[0]),
        buffers_(std::move(buffers)) {}

  Status open_stream();
  Status add_context(Profile profile);
  Expected<Context> create_context(Profile profile) const;
  void* context(Profile profile) const { return contexts_[static_cast<size_t>(profile)].context.get(); }
  /// Sizes of a step: tokens of each sequence, and tokens whose logits it gives.
  struct StepSizes {
    int64_t tokens = 0;
    int64_t rows = 0;

    bool operator==(const StepSizes&) const = default;
  };

  /// Sets what stays for good: addresses, and the shapes of inputs that are dynamic but do not depend on the sizes of
  /// the step.
  Status bind(void* context) const;
  Status set_address(void* context, std::string_view name, void* data) const;
  Status set_shape(void* context, std::string_view name, const Shape& shape) const;
  Status set_sizes(Profile profile, const StepSizes& sizes);
  SymbolSizes symbols_of(const StepSizes& sizes) const;
  /// Bytes of a token input, or of the logits, in a step of these sizes.
  int64_t step_bytes(const TensorSpec& spec, const StepSizes& sizes) const;
  /// The sizes of every step of the decode profile.
  StepSizes decode_sizes() const { return {1, batch_}; }
  Status warm_up();
  Status capture_decode();

  Status run_in_turn(Profile profile, const StepInputs& step);
  Status stage(const StepInputs& step);
  /// Puts a step of these sizes on the stream: inputs to the GPU, the engine, logits back.
  Status enqueue(Profile profile, const StepSizes& sizes) const;
  Status synchronize() const;

  const LoadedPlan& plan_;
  std::vector<CacheBinding> caches_;
  int64_t batch_;
  std::shared_ptr<StepBuffers> buffers_;
  cuda::CUstream stream_ = nullptr;
  Context contexts_[2];      // by profile
  StepSizes prefill_sizes_;  // that the prefill context has shapes for
  DecodeGraph decode_graph_;
};

}  // namespace sala::tensorrt
