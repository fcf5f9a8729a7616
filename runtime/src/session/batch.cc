#include "sala/batch.h"

#include <algorithm>
#include <utility>

#include "sala/model.h"
#include "session/batch_slots.h"
#include "session/decode_batch.h"
#include "session/session_core.h"

namespace sala {

struct BatchGeneration::Parts {
  std::vector<BatchMember> members;
  DecodeBatch batch;
};

BatchGeneration::BatchGeneration(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
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
  std::vector<BatchMember> members;
  std::vector<SessionCore*> cores;
  for (size_t i = 0; i < sessions.size(); ++i) {
    if (options[i].speculation) {
      return error(ErrorCode::kInvalidArgument, "session ", i,
                   " is to speculate, but sessions of a batch share every step: leave speculation out, or submit the "
                   "sessions to a Scheduler");
    }
    auto generation = sessions[i]->generate(options[i]);
    if (!generation) return generation.error();
    members.emplace_back(*std::move(generation));
    cores.push_back(sessions[i]->core_.get());
  }
  auto slots = BatchSlots::create(data_, static_cast<int64_t>(cores.size()), *cores[0]);
  if (!slots) return slots.error();
  for (const SessionCore* core : cores) {
    if ((*slots)->fits(*core)) continue;
    return error(ErrorCode::kInvalidArgument, "a session of the batch has max_context ", core->max_context(),
                 ", the first one ", cores[0]->max_context(), ": give all sessions of a batch the same");
  }
  auto parts = std::make_unique<BatchGeneration::Parts>(
      BatchGeneration::Parts{std::move(members), DecodeBatch(*std::move(slots))});
  for (size_t i = 0; i < cores.size(); ++i) {
    // What was drawn last has not run yet, and all are to begin with logits.
    if (cores[i]->pending_token()) {
      if (const auto ran = cores[i]->run_pending({}); !ran) return ran.error();
    }
    SALA_RETURN_IF_ERROR(parts->batch.join(parts->members[i]));
  }
  return BatchGeneration(std::move(parts));
}

Expected<std::vector<std::optional<int32_t>>> BatchGeneration::next() {
  SALA_RETURN_IF_ERROR(parts_->batch.step());
  std::vector<std::optional<int32_t>> tokens;
  for (BatchMember& member : parts_->members) tokens.push_back(std::exchange(member.token, std::nullopt));
  return tokens;
}

Status BatchGeneration::end(size_t session) {
  BatchMember& member = parts_->members[session];
  if (member.is_active) parts_->batch.leave(member, success());
  return member.outcome;
}

bool BatchGeneration::has_finished() const { return parts_->batch.is_empty(); }

FinishReason BatchGeneration::finish_reason(size_t session) const {
  return parts_->members[session].generation.finish_reason();
}

const TokenLogprobs* BatchGeneration::logprobs(size_t session) const {
  return parts_->members[session].generation.logprobs();
}

const Status& BatchGeneration::status(size_t session) const { return parts_->members[session].outcome; }

}  // namespace sala
