// How the scheduler's thread wakes an event loop without the interpreter's lock: through a descriptor of Linux.

#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "errors.h"

namespace sala::python {

/// A descriptor that can be read once there is something to look at. It never blocks.
class Wakeup {
 public:
  Wakeup() : descriptor_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (descriptor_ < 0) {
      raise(error(ErrorCode::kOutOfMemory,
                  "the system gives this process no descriptor for a scheduler: ", std::strerror(errno)));
    }
  }
  Wakeup(const Wakeup&) = delete;
  Wakeup& operator=(const Wakeup&) = delete;
  ~Wakeup() { ::close(descriptor_); }

  int descriptor() const { return descriptor_; }

  /// Any thread may call it.
  void wake() const noexcept {
    const uint64_t one = 1;
    // It can only fail where so much is unread that the descriptor stays readable.
    [[maybe_unused]] const ssize_t written = ::write(descriptor_, &one, sizeof one);
  }

 private:
  const int descriptor_;
};

}  // namespace sala::python
