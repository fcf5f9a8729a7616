// A value or an error, for this library and for the operators in plugins/, each with an `Error` of its own.

#pragma once

#include <utility>
#include <variant>

namespace sala {

/// A value, or why there is none. Reading the value of a failed one is a bug of the caller.
template <class T, class E>
class [[nodiscard]] BasicExpected {
 public:
  BasicExpected(T value) : state_(std::move(value)) {}
  BasicExpected(E error) : state_(std::move(error)) {}

  explicit operator bool() const { return state_.index() == 0; }
  T& operator*() & { return *std::get_if<0>(&state_); }
  const T& operator*() const& { return *std::get_if<0>(&state_); }
  T&& operator*() && { return std::move(*std::get_if<0>(&state_)); }
  T* operator->() { return std::get_if<0>(&state_); }
  const T* operator->() const { return std::get_if<0>(&state_); }
  const E& error() const { return *std::get_if<1>(&state_); }

 private:
  std::variant<T, E> state_;
};

}  // namespace sala

/// Leaves the function with the error of a failed Status or Expected.
#define SALA_RETURN_IF_ERROR(expression)                                  \
  do {                                                                    \
    if (auto outcome_ = (expression); !outcome_) return outcome_.error(); \
  } while (false)
