// What memory does that neither grows nor shares, and host memory of that kind, as anonymous pages. Not malloc: `clear`
// must give pages back, and sizes reach many gigabytes of which little may be used.

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>

#include "sala/engine.h"

namespace sala {

Buffer::~Buffer() {
  if (data_ != nullptr) memory_->release(data_, bytes_);
}

Status Memory::claim(Buffer&, ByteRange) { return success(); }

Status Memory::drop(Buffer&, ByteRange) { return success(); }

Status Memory::share(Buffer& to, const Buffer& from, std::span<const ByteRange> parts) {
  for (const ByteRange& part : parts) {
    SALA_RETURN_IF_ERROR(copy(static_cast<char*>(to.data()) + part.offset,
                              static_cast<const char*>(from.data()) + part.offset, part.bytes));
  }
  return success();
}

Status Memory::copy(void* to, const void* from, int64_t bytes) {
  constexpr int64_t kStagingBytes = int64_t{4} << 20;
  const int64_t most = std::min(kStagingBytes, bytes);
  const auto staging = std::make_unique_for_overwrite<char[]>(static_cast<size_t>(most));
  for (int64_t done = 0; done < bytes; done += most) {
    const int64_t piece = std::min(most, bytes - done);
    SALA_RETURN_IF_ERROR(read(staging.get(), static_cast<const char*>(from) + done, piece));
    SALA_RETURN_IF_ERROR(write(static_cast<char*>(to) + done, staging.get(), piece));
  }
  return success();
}

Status Memory::show(Buffer&, Buffer&, int64_t) {
  return error(ErrorCode::kInvalidArgument,
               "this memory does not grow by pages: a buffer of it cannot be shown at a second place");
}

Status Memory::hide(Buffer&) { return success(); }

namespace {

class HostMemory final : public Memory {
 public:
  Expected<Buffer> allocate(int64_t bytes) override {
    if (bytes < 0) return error(ErrorCode::kInvalidArgument, "cannot allocate ", bytes, " bytes");
    // mmap refuses a length of zero, and a null pointer would not do for an empty tensor.
    const int64_t length = bytes > 0 ? bytes : 1;
    void* data = mmap(nullptr, static_cast<size_t>(length), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return error(ErrorCode::kOutOfMemory, "no room for ", bytes, " bytes of host memory: ", std::strerror(errno),
                   "; choose a smaller max_context or a machine with more memory");
    }
    used_bytes_ += length;
    return Buffer(*this, data, length);
  }

  Status clear(Buffer& buffer) override {
    // Fresh zero pages for private anonymous memory.
    if (madvise(buffer.data(), static_cast<size_t>(buffer.bytes()), MADV_DONTNEED) != 0) {
      return error(ErrorCode::kEngineFailed, "cannot clear host memory: ", std::strerror(errno));
    }
    return success();
  }

  Status read(void* host, const void* from, int64_t bytes) override {
    std::memcpy(host, from, static_cast<size_t>(bytes));
    return success();
  }

  Status write(void* to, const void* host, int64_t bytes) override {
    std::memcpy(to, host, static_cast<size_t>(bytes));
    return success();
  }

  Status copy(void* to, const void* from, int64_t bytes) override { return read(to, from, bytes); }

  bool is_on_host() const override { return true; }
  int64_t used_bytes() const override { return used_bytes_; }

 private:
  void release(void* data, int64_t bytes) noexcept override {
    munmap(data, static_cast<size_t>(bytes));
    used_bytes_ -= bytes;
  }

  std::atomic<int64_t> used_bytes_ = 0;
};

}  // namespace

Memory& host_memory() {
  static HostMemory memory;
  return memory;
}

}  // namespace sala
