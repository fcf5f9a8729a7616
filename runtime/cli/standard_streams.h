// The standard streams of sala-run: every write is checked, and no file ever takes their place.

#pragma once

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

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

/// Standard output. After a write that failed it takes nothing more.
class Output {
 public:
  void write(std::string_view text) {
    while (error_ == 0 && !text.empty()) {
      const ssize_t count = ::write(STDOUT_FILENO, text.data(), text.size());
      if (count >= 0) {
        text.remove_prefix(static_cast<size_t>(count));
      } else if (errno == EAGAIN) {  // another program has made it non-blocking
        pollfd writable{STDOUT_FILENO, POLLOUT, 0};
        poll(&writable, 1, -1);
      } else if (errno != EINTR) {
        error_ = errno;
      }
    }
  }

  /// The errno of the write that failed, or 0.
  int error() const { return error_; }

 private:
  int error_ = 0;
};

}  // namespace sala::cli
