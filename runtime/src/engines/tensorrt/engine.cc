#include "engines/tensorrt/engine.h"

#include <algorithm>
#include <utility>

#include "engines/tensorrt/execution.h"
#include "sala/step_names.h"

namespace sala::tensorrt {

namespace {

/// Of profiles that `compare_with_manifest` has taken, each with the range of every symbol.
EngineLimits limits_of(const ProfileRanges& prefill, const ProfileRanges& decode) {
  const int64_t chunk = prefill.find(step_names::kTokens)->second.max;
  const auto capacity = prefill.find(step_names::kCapacity);
  // Without sparse layers no cache grows; positions are int32, and a step may end at the last one.
  const Range range = capacity == prefill.end() ? Range{1, INT32_MAX - chunk} : capacity->second;
  SymbolSizes largest;
  for (const std::string_view symbol : {step_names::kCapacity, step_names::kCapacityK1, step_names::kCapacityK2}) {
    if (const auto found = prefill.find(symbol); found != prefill.end()) largest.emplace(symbol, found->second.max);
  }
  return {.max_context = range.max,
          .max_chunk_tokens = chunk,
          .default_chunk_tokens = chunk,
          .least_capacity = range.min,
          .max_batch = decode.find(step_names::kBatch)->second.max,
          .max_logit_rows = prefill.find(step_names::kRows)->second.max,
          .larger_batch = "build the bundle again with sala-export build --max-batch N",
          .largest_caches = std::move(largest)};
}

}  // namespace

Expected<std::shared_ptr<const Engine>> TensorRtEngine::create(const Bundle& bundle, const LoadOptions& options,
                                                               const WeightSource& source) {
  if (!bundle.manifest.has_engine()) {
    return error(ErrorCode::kDeviceUnsuitable,
                 "the bundle was built for CPUs and has no TensorRT engine: runtime onnxruntime runs it, for a GPU "
                 "build one with an engine, for example with sala-export build --gpu rtx");
  }
  auto plan = LoadedPlan::load(bundle, options, source);
  if (!plan) return plan.error();
  return std::shared_ptr<const Engine>(new TensorRtEngine(*std::move(plan), bundle.manifest));
}

TensorRtEngine::TensorRtEngine(std::unique_ptr<const LoadedPlan> plan, const Manifest& manifest)
    : plan_(std::move(plan)),
      precision_(manifest.precision),
      inputs_(manifest.inputs),
      outputs_(manifest.outputs),
      limits_(limits_of(manifest.engine.profiles.find(step_names::kPrefill)->second,
                        manifest.engine.profiles.find(step_names::kDecode)->second)) {}

Expected<std::unique_ptr<Execution>> TensorRtEngine::create_execution(std::span<const CacheBinding> caches,
                                                                      CacheContents contents) const {
  auto buffers = step_buffers();
  if (!buffers) return buffers.error();
  return TensorRtExecution::create(*plan_, *std::move(buffers), caches, contents);
}

Expected<std::shared_ptr<StepBuffers>> TensorRtEngine::step_buffers() const {
  const std::lock_guard lock(mutex_);
  if (auto buffers = step_buffers_.lock()) return buffers;
  auto made = StepBuffers::create(plan_->memory(), plan_->pinned(), plan_->buffer_sizes());
  if (made) step_buffers_ = *made;
  return made;
}

}  // namespace sala::tensorrt
