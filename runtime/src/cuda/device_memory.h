// Memory on the GPU, and pinned memory of the host.

#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "cuda/device.h"
#include "sala/engine.h"
#include "sala/model.h"

namespace sala::cuda {

/// From the driver, or from the caller's allocator.
class DeviceMemory final : public Memory {
 public:
  DeviceMemory(std::shared_ptr<const Device> device, std::optional<DeviceAllocator> allocator)
      : device_(std::move(device)), allocator_(std::move(allocator)) {}

  Expected<Buffer> allocate(int64_t bytes) override;
  Status clear(Buffer& buffer) override;
  Status read(void* host, const void* from, int64_t bytes) override { return device_->read(host, from, bytes); }
  Status write(void* to, const void* host, int64_t bytes) override { return device_->write(to, host, bytes); }
  Status copy(void* to, const void* from, int64_t bytes) override { return device_->copy(to, from, bytes); }
  int64_t used_bytes() const override { return used_bytes_; }

  /// As `allocate`, but not zeroed. `advice`: what to do if there is no room.
  Expected<Buffer> reserve(int64_t bytes, std::string_view advice);

  bool is_of_caller() const { return allocator_.has_value(); }

  /// Memory as it comes, not zeroed; null if there is no room.
  void* take(int64_t bytes) noexcept;
  void give_back(void* data, int64_t bytes) noexcept { release(data, bytes); }

  Status synchronize(void* stream);

 private:
  void release(void* data, int64_t bytes) noexcept override;

  std::shared_ptr<const Device> device_;
  std::optional<DeviceAllocator> allocator_;
  std::atomic<int64_t> used_bytes_ = 0;
};

/// Pages of the host that the GPU reads and writes while the host goes on.
class PinnedMemory final : public Memory {
 public:
  explicit PinnedMemory(std::shared_ptr<const Device> device) : device_(std::move(device)) {}

  Expected<Buffer> allocate(int64_t bytes) override;
  Status clear(Buffer& buffer) override;
  Status read(void* host, const void* from, int64_t bytes) override;
  Status write(void* to, const void* host, int64_t bytes) override;
  Status copy(void* to, const void* from, int64_t bytes) override { return read(to, from, bytes); }
  bool is_on_host() const override { return true; }
  int64_t used_bytes() const override { return used_bytes_; }

 private:
  void release(void* data, int64_t bytes) noexcept override;

  std::shared_ptr<const Device> device_;
  std::atomic<int64_t> used_bytes_ = 0;
};

}  // namespace sala::cuda
