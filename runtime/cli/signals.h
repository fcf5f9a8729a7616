// Ctrl-C and SIGTERM: they end the process at once until there is something to clean up or to save, and then are asked
// for between steps.

#pragma once

#include <poll.h>
#include <unistd.h>

#include <csignal>

namespace sala::cli {

inline volatile std::sig_atomic_t received_signal = 0;

/// Installs a handler that lets system calls return; a signal that whoever started the process ignores stays ignored.
inline void handle_signals(void (*handler)(int)) {
  for (const int number : {SIGINT, SIGTERM}) {
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

/// Waits until a descriptor can be read. False after a signal, which cannot come unnoticed before the wait begins.
inline bool wait_readable(int descriptor) {
  sigset_t blocked, before;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGINT);
  sigaddset(&blocked, SIGTERM);
  sigprocmask(SIG_BLOCK, &blocked, &before);
  pollfd readable{descriptor, POLLIN, 0};
  if (received_signal == 0) ppoll(&readable, 1, nullptr, &before);
  sigprocmask(SIG_SETMASK, &before, nullptr);
  return received_signal == 0;
}

}  // namespace sala::cli
