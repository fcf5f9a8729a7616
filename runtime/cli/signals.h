// Ctrl-C, SIGTERM and the loss of the terminal: they end the process at once until there is something to clean up or to
// save, and then are asked for between steps.

#pragma once

#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>

namespace sala::cli {

/// The last one, or 0. The thread that it interrupts need not be the one that asks.
inline std::atomic<int> received_signal = 0;
static_assert(std::atomic<int>::is_always_lock_free, "a handler may write it");

/// Installs a handler that lets system calls return; a signal that whoever started the process ignores stays ignored.
inline void handle_signals(void (*handler)(int)) {
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction action = {};
    sigaction(number, nullptr, &action);
    if (action.sa_handler == SIG_IGN) continue;
    action = {};
    action.sa_handler = handler;
    sigaction(number, &action, nullptr);
  }
}

/// Signals end the process at once. A reader that went away and a file that grew too large are errors of the write.
inline void leave_on_signals() {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  handle_signals([](int number) { _exit(128 + number); });
}

/// Signals are kept in `received_signal`.
inline void keep_signals() {
  handle_signals([](int number) { received_signal = number; });
}

/// Waits until a descriptor is ready for `events` of poll(2), or has an error for the call that follows. False if a
/// signal comes before it is.
inline bool wait_ready(int descriptor, short events) {
  constexpr int kMilliseconds = 100;  // of looking again, for a signal may interrupt another thread than this one
  do {
    pollfd ready{descriptor, events, 0};
    const int count = poll(&ready, 1, kMilliseconds);
    if (count > 0 || (count < 0 && errno != EINTR)) return true;
  } while (received_signal == 0);
  return false;
}

}  // namespace sala::cli
