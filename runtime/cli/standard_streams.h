// The standard streams of sala-run: every write is checked, and no file ever takes their place.

#pragma once

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "signals.h"

namespace sala::cli {

/// Opens /dev/null in place of closed standard streams, so that no file gets their numbers. False if standard output
/// was closed.
inline bool fill_closed_streams() {
  bool has_output = true;
  for (int descriptor = 0; descriptor < 3; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) >= 0) continue;
    if (descriptor == STDOUT_FILENO) has_output = false;
    open("/dev/null", O_RDWR);  // gets the lowest free number, which is this one
  }
  return has_output;
}

/// Standard output or standard error. After a write that failed, or that a signal ended while no reader took anything,
/// it takes nothing more.
class Output {
 public:
  explicit Output(int descriptor) : descriptor_(descriptor) {}

  void write(std::string_view text) {
    while (error_ == 0 && !text.empty()) {
      if (!wait_ready(descriptor_, POLLOUT)) {
        error_ = EINTR;
        return;
      }
      // A pipe that is ready takes so much at once.
      const ssize_t count = ::write(descriptor_, text.data(), std::min<size_t>(text.size(), PIPE_BUF));
      if (count >= 0) {
        text.remove_prefix(static_cast<size_t>(count));
      } else if (errno != EINTR && errno != EAGAIN) {
        error_ = errno;
      }
    }
  }

  /// The errno of the write that failed, or 0.
  int error() const { return error_; }

 private:
  int descriptor_;
  int error_ = 0;
};

/// Prints a message. A signal drops it if nobody reads, for it must not hold the end up.
inline void write_message(std::string_view text) { Output(STDERR_FILENO).write(text); }

}  // namespace sala::cli
