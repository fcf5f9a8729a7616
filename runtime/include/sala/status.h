// Outcomes of operations that can fail. Nothing in this library throws on failure. A message says what failed, where,
// and what to do.

#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <variant>

#include "sala/expected.h"

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
  kBusy = 503,
};

/// The enumerator without its `k`, e.g. `ContextExceeded`.
std::string_view name_of(ErrorCode code);

struct Error {
  ErrorCode code;
  std::string message;
};

/// A value, or why there is none; see BasicExpected.
template <class T>
using Expected = BasicExpected<T, Error>;

using Status = Expected<std::monostate>;

inline Status success() { return std::monostate{}; }

/// Makes text one line that does nothing to a terminal: control characters, what turns the direction of text,
/// separators of lines and bytes that are no UTF-8 come out as escapes, `\x1b` or `\u202e`. Other text stays as it is.
std::string printable(std::string_view text);

/// Text without its middle if it is longer than 4000 bytes, so that a message with a long value still says what is
/// wrong and what to do.
std::string shortened(std::string_view text);

/// Makes an error whose message is the parts, printed one after the other. The message is one line, as `shortened` and
/// `printable` have it.
template <class... Parts>
Error error(ErrorCode code, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return Error{code, printable(shortened(text.str()))};
}

}  // namespace sala
