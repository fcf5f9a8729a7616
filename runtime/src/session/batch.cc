#include "sala/batch.h"

#include <algorithm>
#include <utility>

#include "sala/model.h"
#include "session/batch_slots.h"
#include "session/session_core.h"

namespace sala {

struct BatchGeneration::Member {
  Generation generation;
  Status outcome = success();
  bool is_active = true;
};

BatchGeneration::BatchGeneration(std::vector<Member> members, std::unique_ptr<BatchSlots> slots)
    : slots_(std::move(slots)), members_(std::move(members)) {}
BatchGeneration::BatchGeneration(BatchGeneration&&) noexcept = default;
BatchGeneration& BatchGeneration::operator=(BatchGeneration&&) noexcept = default;
BatchGeneration::~BatchGeneration() = default;

Expected<BatchGeneration> Model::generate_batch(std::span<Session* const> sessions,
                                                std::span<const GenerateOptions> options) const {
  if (sessions.empty() || options.size() != sessions.size()) {
    return error(ErrorCode::kInvalidArgument, "the batch has ", sessions.size(), " sessions and ", options.size(),
                 " options, expected at least one session and as many options");
  }
  for (size_t i = 0; i < sessions.size(); ++i) {
    if (&sessions[i]->core_->model() != data_.get()) {
      return error(ErrorCode::kInvalidArgument, "session ", i, " is of another model: make a batch for each model");
    }
    if (std::find(sessions.begin(), sessions.begin() + static_cast<ptrdiff_t>(i), sessions[i]) !=
        sessions.begin() + static_cast<ptrdiff_t>(i)) {
      return error(ErrorCode::kInvalidArgument, "session ", i, " is in the batch twice: fork it");
    }
  }
  std::vector<BatchGeneration::Member> members;
  std::vector<SessionCore*> cores;
  for (size_t i = 0; i < sessions.size(); ++i) {
    auto generation = sessions[i]->generate(options[i]);
    if (!generation) return generation.error();
    members.push_back({*std::move(generation)});
    cores.push_back(sessions[i]->core_.get());
  }
  auto slots = BatchSlots::create(data_, cores);
  if (!slots) return slots.error();
  for (SessionCore* core : cores) {
    // What was drawn last has not run yet, and all are to begin with logits.
    if (const auto pending = core->pending_token()) SALA_RETURN_IF_ERROR(core->run({&*pending, 1}, core->position()));
    SALA_RETURN_IF_ERROR((*slots)->join(*core));
  }
  return BatchGeneration(std::move(members), *std::move(slots));
}

Expected<std::vector<std::optional<int32_t>>> BatchGeneration::next() {
  for (Member& member : members_) {
    if (member.is_active && !member.generation.goes_on()) let_go(member, success());
  }
  SALA_RETURN_IF_ERROR(run_step());
  std::vector<std::optional<int32_t>> tokens(members_.size());
  for (size_t i = 0; i < members_.size(); ++i) {
    if (members_[i].is_active) draw(members_[i], tokens[i]);
  }
  return tokens;
}

/// All that go on have drawn a token before, or none has.
Status BatchGeneration::run_step() {
  std::vector<SessionCore*> sessions;
  std::vector<Member*> active;
  for (Member& member : members_) {
    if (!member.is_active || !member.generation.core_->pending_token()) continue;
    active.push_back(&member);
    sessions.push_back(member.generation.core_);
  }
  if (sessions.empty()) return success();
  std::vector<Status> outcomes(sessions.size(), success());
  const Status ran = slots_->step(sessions, outcomes);
  for (size_t i = 0; i < active.size(); ++i) {
    active[i]->outcome = ran ? outcomes[i] : ran;
    active[i]->is_active = static_cast<bool>(active[i]->outcome);
  }
  end_lost();
  return ran;
}

/// Ends those that the slots have lost while others left.
void BatchGeneration::end_lost() {
  for (Member& member : members_) {
    if (!member.is_active || slots_->has(*member.generation.core_)) continue;
    member.is_active = false;
    member.outcome = error(ErrorCode::kEngineFailed,
                           "another session left the batch, and this one could not take its place: reset it");
  }
}

void BatchGeneration::draw(Member& member, std::optional<int32_t>& token) {
  const auto drawn = member.generation.draw();
  if (drawn) token = *drawn;
  if (!token) let_go(member, drawn ? success() : Status(drawn.error()));
}

void BatchGeneration::let_go(Member& member, Status outcome) {
  member.is_active = false;
  const Status left = slots_->leave(*member.generation.core_);
  member.outcome = left ? std::move(outcome) : left;
  end_lost();
}

Status BatchGeneration::end(size_t session) {
  Member& member = members_[session];
  if (member.is_active) let_go(member, success());
  return member.outcome;
}

bool BatchGeneration::has_finished() const {
  return std::none_of(members_.begin(), members_.end(), [](const Member& member) { return member.is_active; });
}

FinishReason BatchGeneration::finish_reason(size_t session) const {
  return members_[session].generation.finish_reason();
}

const Status& BatchGeneration::status(size_t session) const { return members_[session].outcome; }

}  // namespace sala
