// The caller's allocator as TensorRT asks for it.

#pragma once

#include <cstdint>
#include <map>
#include <mutex>

#include "cuda/device_memory.h"

namespace sala::tensorrt {

/// IGpuAllocator 1.0: functions in its order, the same in all versions that are known. TensorRT calls it from any
/// thread; what it allocates are constants of the plan and what contexts keep.
class Allocator {
 public:
  explicit Allocator(cuda::DeviceMemory& memory) : memory_(memory) {}

  struct Version {
    const char* kind;
    int32_t major;
    int32_t minor;
  };

  virtual int32_t language() const noexcept { return 0; }  // C++
  virtual Version version() const noexcept { return {"IGpuAllocator", 1, 0}; }
  virtual ~Allocator() = default;
  virtual void* allocate(uint64_t bytes, uint64_t alignment, uint32_t flags) noexcept;
  /// Optional in the interface; null says that the block cannot grow.
  virtual void* reallocate(void*, uint64_t, uint64_t) noexcept { return nullptr; }
  virtual bool deallocate(void* data) noexcept;
  virtual void* allocate_async(uint64_t bytes, uint64_t alignment, uint32_t flags, void*) noexcept {
    return allocate(bytes, alignment, flags);
  }
  virtual bool deallocate_async(void* data, void* stream) noexcept;

 private:
  cuda::DeviceMemory& memory_;
  std::mutex mutex_;
  std::map<void*, int64_t> bytes_;
};

}  // namespace sala::tensorrt
