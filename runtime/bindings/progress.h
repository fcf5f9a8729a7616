// Progress of work in the core, told to Python.

#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <utility>

#include "interpreter_lock.h"

namespace sala::python {

/// Progress reports to Python, and Ctrl-C between them. What Python raises is kept and stops the work: it must not
/// travel through the core.
class ProgressReporter {
 public:
  explicit ProgressReporter(nanobind::object callback) : callback_(std::move(callback)) {}

  template <class... Values>
  bool operator()(const Values&... values) {
    const Locked locked;
    try {
      until_the_interpreter_ends([&] {
        if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
        if (!callback_.is_none()) callback_(values...);
      });
      return true;
    } catch (nanobind::python_error& raised) {
      raised_.emplace(std::move(raised));
      return false;
    }
  }

  void rethrow() {
    if (!raised_) return;
    nanobind::python_error raised = std::move(*raised_);
    raised_.reset();
    throw raised;
  }

 private:
  nanobind::object callback_;
  std::optional<nanobind::python_error> raised_;
};

}  // namespace sala::python
