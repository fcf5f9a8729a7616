// The lock of the Python interpreter, for threads that may outlive the interpreter.
//
// A daemon thread can be in the core when the interpreter ends. Python 3.13 and before then end every thread that asks
// for the lock, by unwinding its stack. The core's frames, which throw nothing, do not survive that. So here such a
// thread waits instead, for the end of the process.

#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <unistd.h>

#include <utility>

namespace sala::python {

/// Does what may ask for the lock. Returns what `call` does, or never.
template <class Call>
decltype(auto) until_the_interpreter_ends(Call&& call) {
  try {
    return std::forward<Call>(call)();
  } catch (const abi::__forced_unwind&) {
    while (true) pause();
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
