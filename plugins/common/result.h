// Outcomes of operations that can fail. Nothing here throws on failure; a message says what, where and what to do.

#pragma once

#include <sstream>
#include <string>
#include <utility>
#include <variant>

namespace sala {

struct Error {
  std::string message;
};

/// A value, or why there is none.
template <class T>
class [[nodiscard]] Expected {
 public:
  Expected(T value) : state_(std::move(value)) {}
  Expected(Error error) : state_(std::move(error)) {}

  explicit operator bool() const { return std::holds_alternative<T>(state_); }
  T& operator*() { return std::get<T>(state_); }
  const T& operator*() const { return std::get<T>(state_); }
  T* operator->() { return &std::get<T>(state_); }
  const T* operator->() const { return &std::get<T>(state_); }
  const Error& error() const { return std::get<Error>(state_); }

 private:
  std::variant<T, Error> state_;
};

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

/// Leaves the function with the error of a failed Status or Expected.
#define SALA_RETURN_IF_ERROR(expression)                                  \
  do {                                                                    \
    if (auto outcome_ = (expression); !outcome_) return outcome_.error(); \
  } while (false)
