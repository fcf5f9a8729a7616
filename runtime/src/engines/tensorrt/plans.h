// The plans of a bundle, deserialised: what an engine holds and its executions share.

#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "engines/tensorrt/allocator.h"
#include "engines/tensorrt/device.h"
#include "engines/tensorrt/device_memory.h"
#include "engines/tensorrt/library.h"
#include "engines/tensorrt/log.h"
#include "engines/tensorrt/runtime_cache.h"
#include "engines/tensorrt/shard.h"
#include "engines/tensorrt/step_buffers.h"
#include "manifest.h"
#include "sala/model.h"

namespace sala::tensorrt {

/// Immutable after `load`. Members are destroyed from the last to the first, as TensorRT needs it.
class Plans {
 public:
  static Expected<std::unique_ptr<const Plans>> load(const std::filesystem::path& bundle, const Manifest& manifest,
                                                     const TensorRtOptions& options);

  const CudaDriver& driver() const { return device_->driver(); }
  const std::shared_ptr<const Device>& device() const { return device_; }
  const Interface& interface() const { return *interface_; }
  DeviceMemory& memory() const { return *memory_; }
  PinnedMemory& pinned() const { return *pinned_; }
  const std::vector<Shard>& shards() const { return shards_; }
  const std::vector<TensorSpec>& token_inputs() const { return token_inputs_; }
  const StepBufferSizes& buffer_sizes() const { return buffer_sizes_; }
  const TensorRtOptions& options() const { return options_; }
  /// Null if TensorRT has none, or the bundle lies where nothing can be written.
  RuntimeCache* runtime_cache() const { return runtime_cache_.get(); }

  /// Why a function of TensorRT failed, by its log. `what` was attempted. kOutOfMemory, kDeviceUnsuitable if the driver
  /// is too old, else kEngineFailed.
  Error failure(const std::string& what) const;

 private:
  Plans() = default;

  Status deserialise(const std::filesystem::path& bundle, const Manifest& manifest);
  Status check_room(const Manifest& manifest) const;
  void measure(const Manifest& manifest);

  TensorRtOptions options_;
  std::shared_ptr<const Device> device_;
  std::unique_ptr<DeviceMemory> memory_;
  std::unique_ptr<PinnedMemory> pinned_;
  std::unique_ptr<Allocator> allocator_;
  std::string title_;
  const Interface* interface_ = nullptr;
  std::unique_ptr<Log> log_;
  Object runtime_;
  std::vector<Shard> shards_;
  std::unique_ptr<RuntimeCache> runtime_cache_;
  std::vector<TensorSpec> token_inputs_;
  StepBufferSizes buffer_sizes_;
};

}  // namespace sala::tensorrt
