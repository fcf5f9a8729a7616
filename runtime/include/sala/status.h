// Outcomes of operations that can fail. Nothing in this library throws on failure. A message says what failed, where,
// and what to do.

#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace sala {

enum class ErrorCode : int32_t {
  // 1xx: an argument was wrong. The object that refused it is as it was.
  kInvalidArgument = 100,
  kEmptyPrompt = 101,
  kTokenOutOfRange = 102,
  kContextExceeded = 103,
  kNoLogits = 104,
  // 2xx: the bundle and weights.
  kBundleMissing = 200,
  kBundleDamaged = 201,
  kBundleSchema = 202,
  kWeightsMissing = 203,
  kWeightsUnsuitable = 204,
  // 3xx: a state file.
  kStateUnreadable = 300,
  kStateForeign = 301,
  kStateDamaged = 302,
  kStateVersion = 303,
  kStateModel = 304,
  kStatePrecision = 305,
  kStateUnwritable = 306,
  // 4xx: this machine and its libraries.
  kLibraryMissing = 400,
  kLibraryUnusable = 401,
  kOutOfMemory = 402,
  kDeviceMissing = 403,
  kDeviceUnsuitable = 404,
  // 5xx: running.
  kEngineFailed = 500,
  kSessionPoisoned = 501,
  kStopped = 502,
};

/// The enumerator without its `k`, e.g. `ContextExceeded`.
std::string_view name_of(ErrorCode code);

struct Error {
  ErrorCode code;
  std::string message;
};

/// A value, or the error that explains why there is none. It is a bug to read the value of a failed one.
template <class T>
class [[nodiscard]] Expected {
 public:
  Expected(T value) : state_(std::move(value)) {}
  Expected(Error error) : state_(std::move(error)) {}

  explicit operator bool() const { return state_.index() == 0; }
  T& operator*() & { return *std::get_if<0>(&state_); }
  const T& operator*() const& { return *std::get_if<0>(&state_); }
  T&& operator*() && { return std::move(*std::get_if<0>(&state_)); }
  T* operator->() { return std::get_if<0>(&state_); }
  const T* operator->() const { return std::get_if<0>(&state_); }
  const Error& error() const { return *std::get_if<1>(&state_); }

 private:
  std::variant<T, Error> state_;
};

using Status = Expected<std::monostate>;

inline Status success() { return std::monostate{}; }

/// Makes an error whose message is the parts, printed one after the other.
template <class... Parts>
Error error(ErrorCode code, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return Error{code, text.str()};
}

}  // namespace sala

/// Leaves the function with the error of a failed Status or Expected.
#define SALA_RETURN_IF_ERROR(expression)                                  \
  do {                                                                    \
    if (auto outcome_ = (expression); !outcome_) return outcome_.error(); \
  } while (false)
