// The plan of a bundle, deserialised, and its weights on the GPU: what an engine holds and its executions share.

#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "cuda/device.h"
#include "cuda/device_memory.h"
#include "engines/tensorrt/allocator.h"
#include "engines/tensorrt/device_weights.h"
#include "engines/tensorrt/library.h"
#include "engines/tensorrt/log.h"
#include "engines/tensorrt/runtime_cache.h"
#include "engines/tensorrt/step_buffers.h"
#include "sala/model.h"
#include "weights/weight_source.h"

namespace sala::tensorrt {

/// Profiles in the order in which sala-export builds them.
constexpr int32_t kProfileIndex[] = {0, 1};  // by Profile: prefill, decode

/// Immutable after `load`. Members are destroyed from the last to the first, as TensorRT needs it.
class LoadedPlan {
 public:
  static Expected<std::unique_ptr<const LoadedPlan>> load(const Bundle& bundle, const LoadOptions& options,
                                                          const WeightSource& source);

  const cuda::CudaDriver& driver() const { return device_->driver(); }
  const std::shared_ptr<const cuda::Device>& device() const { return device_; }
  const Interface& interface() const { return *interface_; }
  cuda::DeviceMemory& memory() const { return *memory_; }
  /// Memory for caches. It grows and shares pages, unless the caller allocates or the GPU cannot map pages.
  Memory& cache_memory() const { return *cache_memory_; }
  cuda::PinnedMemory& pinned() const { return *pinned_; }
  /// Its file, for messages.
  const std::string& name() const { return name_; }
  /// An ICudaEngine.
  void* engine() const { return engine_.get(); }
  const DeviceWeights& weights() const { return weights_; }
  const std::vector<TensorSpec>& token_inputs() const { return token_inputs_; }
  const TensorSpec& logits() const { return logits_; }
  const StepBufferSizes& buffer_sizes() const { return buffer_sizes_; }
  const TensorRtOptions& options() const { return options_; }
  /// Null if TensorRT has none, or the bundle lies where nothing can be written.
  RuntimeCache* runtime_cache() const { return runtime_cache_.get(); }

  /// Why a function of TensorRT failed, by its log. `what` was attempted. kOutOfMemory, kDeviceUnsuitable if the driver
  /// is too old, else kEngineFailed.
  Error failure(const std::string& what) const;

 private:
  LoadedPlan() = default;

  Status start(const Library& library);
  Status deserialise(const Bundle& bundle);
  Status check_room(const Manifest& manifest, int64_t plan_bytes) const;
  Status measure(const Manifest& manifest);
  void open_runtime_cache(const std::filesystem::path& bundle);

  TensorRtOptions options_;
  std::shared_ptr<const cuda::Device> device_;
  std::unique_ptr<cuda::DeviceMemory> memory_;
  std::unique_ptr<Memory> cache_memory_;
  std::unique_ptr<cuda::PinnedMemory> pinned_;
  std::unique_ptr<Allocator> allocator_;
  std::string name_;
  std::string title_;
  const Interface* interface_ = nullptr;
  std::unique_ptr<Log> log_;
  DeviceWeights weights_;
  Object runtime_;
  Object engine_;
  std::unique_ptr<RuntimeCache> runtime_cache_;
  std::vector<TensorSpec> token_inputs_;
  TensorSpec logits_;
  StepBufferSizes buffer_sizes_;
};

}  // namespace sala::tensorrt
