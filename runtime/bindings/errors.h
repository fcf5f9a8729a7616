// Statuses as the exceptions of sala_export.errors.

#pragma once

#include "sala/status.h"

namespace sala::python {

/// Throws nanobind::python_error. The GIL must be held.
[[noreturn]] void raise(const Error& error);

/// The value, or the exception for its absence.
template <class T>
T unwrap(Expected<T> result) {
  if (!result) raise(result.error());
  return *std::move(result);
}

}  // namespace sala::python
