#include "session/speculation.h"

#include <algorithm>
#include <utility>

namespace sala {

bool Speculation::wants_own_step(SessionCore& session, int64_t most) {
  return session.has_run_pending() || !choose(session, most).empty();
}

const std::vector<int32_t>& Speculation::choose(SessionCore& session, int64_t most) {
  if (drafts_) return *drafts_;
  depth_.learn(std::exchange(last_drafted_, 0), std::exchange(last_accepted_, 0));
  most = std::min({most, depth_.next(), session.most_drafts()});
  return drafts_.emplace(most > 0 ? session.propose(most) : std::vector<int32_t>());
}

Status Speculation::step(SessionCore& session, int64_t most) {
  if (session.has_run_pending()) {
    if (const auto ran = session.run_pending({}); !ran) return ran.error();
    // It may be a draft of an answer that was left before this one began.
    if (last_accepted_ == last_drafted_) return success();
    ++last_accepted_;
    ++accepted_;
    return success();
  }
  const auto ran = session.run_pending(choose(session, most));
  if (!ran) {
    drafts_.reset();  // the session may have changed when this is tried again
    return ran.error();
  }
  last_drafted_ = *ran;
  drafted_ += *ran;
  return success();
}

}  // namespace sala
