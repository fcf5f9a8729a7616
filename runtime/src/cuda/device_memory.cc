#include "cuda/device_memory.h"

#include <algorithm>
#include <cstring>

namespace sala::cuda {

namespace {

constexpr uintptr_t kAlignment = 256;

// The driver refuses zero bytes, and a null pointer would not do for an empty tensor.
size_t positive(int64_t bytes) { return static_cast<size_t>(std::max<int64_t>(bytes, 1)); }

}  // namespace

void* DeviceMemory::take(int64_t bytes) noexcept {
  const Device::Current current(*device_);
  void* taken = nullptr;
  if (allocator_) {
    taken = allocator_->allocate(std::max<int64_t>(bytes, 1));
  } else if (CUdeviceptr data = 0; device_->driver().mem_alloc(&data, positive(bytes)) == kCudaSuccess) {
    taken = reinterpret_cast<void*>(data);
  }
  if (taken != nullptr) used_bytes_ += std::max<int64_t>(bytes, 1);
  return taken;
}

Expected<Buffer> DeviceMemory::allocate(int64_t bytes) {
  auto buffer = reserve(bytes, "choose a smaller max_context, or end other programs on the GPU");
  if (buffer) SALA_RETURN_IF_ERROR(clear(*buffer));
  return buffer;
}

Expected<Buffer> DeviceMemory::reserve(int64_t bytes, std::string_view advice) {
  if (bytes < 0) return error(ErrorCode::kInvalidArgument, "cannot allocate ", bytes, " bytes");
  void* data = take(bytes);
  if (data == nullptr) {
    const auto free = device_->free_bytes();
    if (!free) return free.error();
    return error(ErrorCode::kOutOfMemory, "no room for ", bytes, " bytes of device memory, ", *free,
                 " are free: ", advice);
  }
  Buffer buffer(*this, data, std::max<int64_t>(bytes, 1));
  if (reinterpret_cast<uintptr_t>(data) % kAlignment != 0) {
    return error(ErrorCode::kInvalidArgument, "the allocator gave an address that is not a multiple of ", kAlignment);
  }
  return buffer;
}

Status DeviceMemory::clear(Buffer& buffer) { return device_->set_zero(buffer.data(), buffer.bytes()); }

Status DeviceMemory::synchronize(void* stream) {
  const Device::Current current(*device_);
  const CudaDriver& driver = device_->driver();
  return driver.check(driver.stream_synchronize(static_cast<CUstream>(stream)), "wait for a stream");
}

void DeviceMemory::release(void* data, int64_t bytes) noexcept {
  used_bytes_ -= bytes;
  const Device::Current current(*device_);
  if (allocator_) {
    allocator_->release(data, bytes);
  } else {
    device_->driver().mem_free(address(data));
  }
}

Expected<Buffer> PinnedMemory::allocate(int64_t bytes) {
  const Device::Current current(*device_);
  const CudaDriver& driver = device_->driver();
  void* data = nullptr;
  SALA_RETURN_IF_ERROR(driver.check(driver.mem_host_alloc(&data, positive(bytes), 0), "pin host memory"));
  std::memset(data, 0, positive(bytes));
  used_bytes_ += static_cast<int64_t>(positive(bytes));
  return Buffer(*this, data, static_cast<int64_t>(positive(bytes)));
}

Status PinnedMemory::clear(Buffer& buffer) {
  std::memset(buffer.data(), 0, static_cast<size_t>(buffer.bytes()));
  return success();
}

Status PinnedMemory::read(void* host, const void* from, int64_t bytes) {
  std::memcpy(host, from, static_cast<size_t>(bytes));
  return success();
}

Status PinnedMemory::write(void* to, const void* host, int64_t bytes) { return read(to, host, bytes); }

void PinnedMemory::release(void* data, int64_t bytes) noexcept {
  used_bytes_ -= bytes;
  const Device::Current current(*device_);
  device_->driver().mem_free_host(data);
}

}  // namespace sala::cuda
