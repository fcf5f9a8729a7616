// Host memory as anonymous pages. Not malloc: `clear` must give pages back, and sizes reach many gigabytes of which a
// session may use little.

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "sala/engine.h"

namespace sala {

Buffer::~Buffer() {
  if (data_ != nullptr) memory_->release(data_, bytes_);
}

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

 private:
  void release(void* data, int64_t bytes) noexcept override { munmap(data, static_cast<size_t>(bytes)); }
};

}  // namespace

Memory& host_memory() {
  static HostMemory memory;
  return memory;
}

}  // namespace sala
