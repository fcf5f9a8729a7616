// Speculation of one answer: which tokens to draft for its next step, and what became of them.
//
// `SessionCore::run_pending` runs the drafts behind the pending token and keeps the logits of each. The answer then
// draws from them one after the other, by the sampler that it would use anyway. A draw that is the next draft has run
// already. Any other one makes the rest of the drafts wrong. So drafts change how many steps an answer takes, and
// nothing else.

#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "sala/session.h"
#include "sala/status.h"
#include "session/draft_depth.h"
#include "session/session_core.h"

namespace sala {

class Speculation {
 public:
  explicit Speculation(int64_t most) : depth_(most) {}

  /// Whether the pending token has run as a draft, or drafts will run with it. `most` is how many the answer can use.
  bool wants_own_step(SessionCore& session, int64_t most);
  /// Runs the pending token, with drafts if there are any.
  Status step(SessionCore& session, int64_t most);
  /// A token was drawn: the next step has other drafts.
  void end_turn() { drafts_.reset(); }

  int64_t drafted() const { return drafted_; }
  int64_t accepted() const { return accepted_; }

 private:
  /// The drafts for the next step, chosen once for each.
  const std::vector<int32_t>& choose(SessionCore& session, int64_t most);

  DraftDepth depth_;
  std::optional<std::vector<int32_t>> drafts_;    // for the next step, once they are chosen
  int64_t drafted_ = 0, accepted_ = 0;            // in the whole answer
  int64_t last_drafted_ = 0, last_accepted_ = 0;  // in its last step that had drafts
};

}  // namespace sala
