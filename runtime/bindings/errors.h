// Statuses as the exceptions of sala_export.errors, and exceptions of an engine in Python as statuses.

#pragma once

#include <nanobind/nanobind.h>

#include "sala/status.h"

namespace sala::python {

/// Throws nanobind::python_error. The GIL must be held.
///
/// An error that began as an exception on this thread has that as its cause; an exception that is no error of this
/// package but an interruption, and one that is an error of this package already, is thrown itself.
[[noreturn]] void raise(const Error& error);

/// The exception that an error began as, if it began as one on this thread and nobody has taken it. The GIL must be
/// held.
nanobind::object take_cause(const Error& error);
/// Whether `take_cause` would find one. The GIL need not be held.
bool has_cause(const Error& error);
/// As `raise`, for an error whose cause is of another thread, or invalid.
[[noreturn]] void raise(const Error& error, const nanobind::object& cause);

/// What Python raised, as a status that may travel through the core: MemoryError is kOutOfMemory, SessionError
/// kInvalidArgument, everything else kEngineFailed. The GIL must be held.
Error from_python(const nanobind::python_error& raised);

/// The value, or the exception for its absence.
template <class T>
T unwrap(Expected<T> result) {
  if (!result) raise(result.error());
  return *std::move(result);
}

}  // namespace sala::python
