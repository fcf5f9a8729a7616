// Sessions as Python holds them: one call at a time is in each, or one batch.

#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "errors.h"
#include "interpreter_lock.h"
#include "sala/session.h"

namespace sala::python {

/// A session, and whether a thread is in it.
struct PySession {
  explicit PySession(Session created) : session(std::move(created)) {}

  Session session;
  std::atomic<bool> busy = false;
};

[[noreturn]] inline void raise_busy() {
  raise({ErrorCode::kInvalidArgument,
         "the session is already at work, here or in another thread: use one session a thread"});
}

/// The session, if no call is in it. None enters while the lock of the interpreter is held.
inline Session& idle(PySession& session) {
  if (session.busy) raise_busy();
  return session.session;
}

/// A session's mark that a thread is in it.
class Busy {
 public:
  explicit Busy(PySession& session) : session_(session) {
    if (session.busy.exchange(true)) raise_busy();
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;
  ~Busy() { session_.busy = false; }

 private:
  PySession& session_;
};

/// Keeps other threads out of a session while the lock of the interpreter is released.
class Working {
 public:
  explicit Working(PySession& session) : busy_(session) {}

 private:
  Busy busy_;
  Unlocked unlocked_;
};

/// Log-probabilities as Python takes them: that of the token, and the likeliest tokens with theirs.
using ToldLogprobs = std::optional<std::pair<double, std::vector<std::pair<int32_t, double>>>>;

inline ToldLogprobs told(const TokenLogprobs* logprobs) {
  if (logprobs == nullptr) return std::nullopt;
  return std::pair(logprobs->logprob, logprobs->top);
}

/// The name of a reason. None while a generation goes on.
inline std::optional<std::string_view> told(FinishReason reason) {
  return reason == FinishReason::kNone ? std::nullopt : std::optional(name_of(reason));
}

}  // namespace sala::python
