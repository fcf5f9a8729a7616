#include "engines/tensorrt/engine.h"

#include <algorithm>
#include <utility>

#include "engines/tensorrt/execution.h"
#include "sala/step_names.h"

namespace sala::tensorrt {

namespace {

EngineLimits limits_of(const ProfileRanges& prefill) {
  const int64_t chunk = prefill.find(step_names::kTokens)->second.max;
  const auto capacity = prefill.find(step_names::kCapacity);
  // Without sparse layers no cache grows; positions are int32, and a step may end at the last one.
  const Range range = capacity == prefill.end() ? Range{1, INT32_MAX - chunk} : capacity->second;
  return {
      .max_context = range.max, .max_chunk_tokens = chunk, .default_chunk_tokens = chunk, .least_capacity = range.min};
}

}  // namespace

Expected<std::shared_ptr<const Engine>> TensorRtEngine::create(const Bundle& bundle, const LoadOptions& options,
                                                               const WeightSource& source) {
  auto plan = LoadedPlan::load(bundle, options, source);
  if (!plan) return plan.error();
  return std::shared_ptr<const Engine>(new TensorRtEngine(*std::move(plan), bundle.manifest));
}

TensorRtEngine::TensorRtEngine(std::unique_ptr<const LoadedPlan> plan, const Manifest& manifest)
    : plan_(std::move(plan)),
      precision_(manifest.precision),
      inputs_(manifest.inputs),
      outputs_(manifest.outputs),
      limits_(limits_of(manifest.engine.profiles.find(step_names::kPrefill)->second)) {}

Expected<std::unique_ptr<Execution>> TensorRtEngine::create_execution(std::span<const CacheBinding> caches) const {
  auto buffers = step_buffers();
  if (!buffers) return buffers.error();
  return TensorRtExecution::create(*plan_, *std::move(buffers), caches);
}

Expected<std::shared_ptr<StepBuffers>> TensorRtEngine::step_buffers() const {
  const std::lock_guard lock(mutex_);
  if (auto buffers = step_buffers_.lock()) return buffers;
  auto made = StepBuffers::create(plan_->memory(), plan_->pinned(), plan_->buffer_sizes());
  if (made) step_buffers_ = *made;
  return made;
}

}  // namespace sala::tensorrt
