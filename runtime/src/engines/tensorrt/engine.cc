#include "engines/tensorrt/engine.h"

#include <algorithm>
#include <utility>

#include "engines/tensorrt/execution.h"

namespace sala::tensorrt {

namespace {

// What two contexts of every shard and a captured graph keep beside the activations. An allowance: no GPU has told yet.
constexpr int64_t kContextBytes = int64_t{64} << 20;

EngineLimits limits_of(const ProfileRanges& prefill) {
  const int64_t chunk = prefill.at("tokens").max;
  const auto capacity = prefill.find("capacity");
  // Without sparse layers no cache grows; positions are int32, and a step may end at the last one.
  const Range range = capacity == prefill.end() ? Range{1, INT32_MAX - chunk} : capacity->second;
  return {
      .max_context = range.max, .max_chunk_tokens = chunk, .default_chunk_tokens = chunk, .least_capacity = range.min};
}

}  // namespace

Expected<std::shared_ptr<const Engine>> TensorRtEngine::create(const std::filesystem::path& bundle,
                                                               const Manifest& manifest,
                                                               const TensorRtOptions& options) {
  auto plans = Plans::load(bundle, manifest, options);
  if (!plans) return plans.error();
  return std::shared_ptr<const Engine>(new TensorRtEngine(*std::move(plans), manifest));
}

TensorRtEngine::TensorRtEngine(std::unique_ptr<const Plans> plans, const Manifest& manifest)
    : plans_(std::move(plans)),
      precision_(manifest.precision),
      inputs_(manifest.inputs),
      outputs_(manifest.outputs),
      limits_(limits_of(manifest.engine.profiles.at("prefill"))) {}

Expected<std::optional<int64_t>> TensorRtEngine::free_cache_bytes() const {
  if (plans_->memory().is_of_caller()) return std::optional<int64_t>();
  const auto free = plans_->device()->free_bytes();
  if (!free) return free.error();
  return std::optional(std::max<int64_t>(*free - plans_->buffer_sizes().device_bytes() - kContextBytes, 0));
}

Expected<std::unique_ptr<Execution>> TensorRtEngine::create_execution(std::span<const CacheBinding> caches) const {
  return TensorRtExecution::create(*plans_, caches);
}

}  // namespace sala::tensorrt
