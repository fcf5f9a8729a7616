// Outcomes of operations that can fail. Nothing here throws on failure; a message says what, where and what to do.

#pragma once

#include <sstream>
#include <string>
#include <variant>

#include "sala/expected.h"

namespace sala {

struct Error {
  std::string message;
};

/// A value, or why there is none; see BasicExpected.
template <class T>
using Expected = BasicExpected<T, Error>;

using Status = Expected<std::monostate>;

inline Status success() { return std::monostate{}; }

/// An error whose message is the parts, printed one after the other.
template <class... Parts>
Error error(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return Error{text.str()};
}

}  // namespace sala
