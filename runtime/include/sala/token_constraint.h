// Which tokens may come next in an answer, for example by a grammar.

#pragma once

#include <cstdint>
#include <span>

#include "sala/status.h"

namespace sala {

/// Tells before each draw which tokens may come, and hears which one came. It is of one answer: make another for the
/// next.
///
/// It is asked in the thread that draws, which for a request is the scheduler's: all requests wait for it meanwhile. It
/// must not throw. An error that it returns ends the answer with the same message, as kInvalidArgument, and the session
/// stays usable.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;

  /// Bit i % 32 of word i / 32 tells whether token i may come next. Tokens behind the last word may not. If there are
  /// no words, every token may. They must stay as they are until `take` is called. Stop tokens need their bits too.
  virtual Expected<std::span<const uint32_t>> allowed() = 0;

  /// Hears of the token that was drawn, a stop token too. The token is in the context, also if this returns an error.
  virtual Status take(int32_t token) = 0;
};

}  // namespace sala
