#include "engines/tensorrt/allocator.h"

namespace sala::tensorrt {

void* Allocator::allocate(uint64_t bytes, uint64_t alignment, uint32_t) noexcept {
  if (bytes == 0 || bytes > INT64_MAX) return nullptr;
  void* data = memory_.take(static_cast<int64_t>(bytes));
  if (data == nullptr) return nullptr;
  if (alignment > 1 && reinterpret_cast<uintptr_t>(data) % alignment != 0) {
    memory_.give_back(data, static_cast<int64_t>(bytes));
    return nullptr;
  }
  const std::lock_guard lock(mutex_);
  bytes_[data] = static_cast<int64_t>(bytes);
  return data;
}

bool Allocator::deallocate(void* data) noexcept {
  if (data == nullptr) return true;
  const std::lock_guard lock(mutex_);
  const auto found = bytes_.find(data);
  if (found == bytes_.end()) return false;
  memory_.give_back(data, found->second);
  bytes_.erase(found);
  return true;
}

bool Allocator::deallocate_async(void* data, void* stream) noexcept {
  // The caller's release knows no streams: wait for what still uses the block.
  return static_cast<bool>(memory_.synchronize(stream)) && deallocate(data);
}

}  // namespace sala::tensorrt
