#include "session/decode_batch.h"

#include <algorithm>

#include "session/session_core.h"

namespace sala {

Status DecodeBatch::join(BatchMember& member) {
  SALA_RETURN_IF_ERROR(slots_->join(*member.generation.core_));
  members_.push_back(&member);
  return success();
}

Status DecodeBatch::step() {
  // Those that leave change the list.
  for (BatchMember* member : std::vector(members_)) {
    member->token.reset();
    if (member->is_active && !member->generation.goes_on()) leave(*member, success());
  }
  SALA_RETURN_IF_ERROR(run_step());
  for (BatchMember* member : std::vector(members_)) {
    if (member->is_active) draw(*member);
  }
  return success();
}

Status DecodeBatch::run_step() {
  std::vector<BatchMember*> ran;
  std::vector<SessionCore*> sessions;
  for (BatchMember* member : members_) {
    if (!member->generation.core_->pending_token()) continue;
    ran.push_back(member);
    sessions.push_back(member->generation.core_);
  }
  if (ran.empty()) return success();
  std::vector<Status> outcomes(ran.size(), success());
  const Status outcome = slots_->step(sessions, outcomes);
  for (size_t i = 0; i < ran.size(); ++i) {
    ran[i]->outcome = outcome || !outcomes[i] ? outcomes[i] : outcome;
    ran[i]->is_active = static_cast<bool>(ran[i]->outcome);
  }
  end_lost();
  return outcome;
}

void DecodeBatch::draw(BatchMember& member) {
  const auto drawn = member.generation.draw();
  if (drawn) member.token = *drawn;
  if (!member.token) leave(member, drawn ? success() : Status(drawn.error()));
}

void DecodeBatch::leave(BatchMember& member, Status outcome) {
  member.is_active = false;
  const Status left = slots_->leave(*member.generation.core_);
  member.outcome = left ? std::move(outcome) : left;
  end_lost();
}

void DecodeBatch::take_out(BatchMember& member) {
  leave(member, success());
  member.is_active = static_cast<bool>(member.outcome);
}

void DecodeBatch::end_lost() {
  for (BatchMember* member : members_) {
    if (!member->is_active || slots_->has(*member->generation.core_)) continue;
    member->is_active = false;
    member->outcome = error(ErrorCode::kEngineFailed,
                            "another session left the batch, and this one could not take its place: reset it");
  }
  std::erase_if(members_, [](const BatchMember* member) { return !member->is_active; });
}

}  // namespace sala
