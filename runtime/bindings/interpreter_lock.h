// The lock of the Python interpreter, for threads that may outlive the interpreter.
//
// A daemon thread can be in the core when the interpreter ends. Python 3.13 and before then end every thread that asks
// for the lock, by unwinding its stack. The core's frames, which throw nothing, do not survive that. So here such a
// thread waits instead, for the end of the process.

#pragma once

#include <Python.h>
#include <unistd.h>

#include <exception>
#include <type_traits>
#include <utility>

namespace sala::python {

/// Waits for the end of the process where the stack is unwound but no exception was thrown.
class EndOfThread {
 public:
  EndOfThread() = default;
  EndOfThread(const EndOfThread&) = delete;
  EndOfThread& operator=(const EndOfThread&) = delete;
  ~EndOfThread() {
    const bool has_thrown = std::uncaught_exceptions() > exceptions_;
    while (!has_returned_ && !has_thrown) pause();
  }
  void returned() { has_returned_ = true; }

 private:
  int exceptions_ = std::uncaught_exceptions();
  bool has_returned_ = false;
};

/// Does what may ask for the lock. Returns what `call` does, or never. Never inlined: a caller that must not throw
/// would end the process before anything is unwound.
template <class Call>
[[gnu::noinline]] auto until_the_interpreter_ends(Call&& call) {
  EndOfThread end;
  if constexpr (std::is_void_v<decltype(call())>) {
    std::forward<Call>(call)();
    end.returned();
  } else {
    auto result = std::forward<Call>(call)();
    end.returned();
    return result;
  }
}

/// Holds the lock for as long as it lives, for a thread that may have it or not.
class Locked {
 public:
  Locked() : state_(until_the_interpreter_ends([] { return PyGILState_Ensure(); })) {}
  Locked(const Locked&) = delete;
  Locked& operator=(const Locked&) = delete;
  ~Locked() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

/// Leaves the lock to other threads for as long as it lives.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    until_the_interpreter_ends([this] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

}  // namespace sala::python
