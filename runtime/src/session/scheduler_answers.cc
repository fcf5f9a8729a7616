// The turn of the answers: one step for those that can share it, and one for each of the others.

#include <algorithm>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "session/scheduler_thread.h"

namespace sala {

void SchedulerThread::take_answer_turn() {
  std::vector<Request*> answering;
  std::ranges::copy_if(running_, std::back_inserter(answering),
                       [](const Request* each) { return each->member.has_value(); });
  separate(answering);
  gather(answering);
  step_together();
  for (Request* each : answering) {
    if (!each->is_in_batch && each->member->is_active) step_alone(*each);
  }
  for (Request* each : answering) settle(*each);
}

void SchedulerThread::separate(std::span<Request* const> answering) {
  for (Request* each : answering) {
    if (!each->is_in_batch || !wants_own_step(*each)) continue;
    if (each->member->is_active) batch_->take_out(*each->member);
    each->is_in_batch = false;
  }
}

bool SchedulerThread::wants_own_step(Request& request) {
  BatchMember& member = *request.member;
  bool wants = false;
  const Status asked = outcome_of(request, [&] {
    wants = member.generation.wants_own_step();
    return success();
  });
  if (asked) return wants;
  if (request.is_in_batch) {
    batch_->leave(member, asked);
  } else {
    member.outcome = asked;
    member.is_active = false;
  }
  return true;
}

void SchedulerThread::gather(std::span<Request* const> answering) {
  if (answering.size() < 2) return;
  for (Request* each : answering) {
    // Who has logits draws from them first.
    if (!each->can_share_steps || each->is_in_batch || !each->session.pending_token()) continue;
    // A step of its own also runs what the states lack after a wrong draft.
    if (!each->session.is_settled() || wants_own_step(*each)) continue;
    const Status joined = outcome_of(*each, [&] { return join(*each); });
    each->can_share_steps = static_cast<bool>(joined);
    if (joined || joined.error().code == ErrorCode::kOutOfMemory) continue;  // it takes steps of its own
    each->member->outcome = joined;
    each->member->is_active = false;
  }
}

Status SchedulerThread::join(Request& request) {
  if (batch_ == nullptr || (batch_->is_empty() && !batch_->fits(request.session))) {
    batch_.reset();
    auto slots = BatchSlots::create(model_, max_running_, request.session);
    if (!slots) return slots.error();
    batch_ = std::make_unique<DecodeBatch>(*std::move(slots));
  }
  if (!batch_->fits(request.session)) return success();
  SALA_RETURN_IF_ERROR(batch_->join(*request.member));
  request.is_in_batch = true;
  return success();
}

void SchedulerThread::step_together() {
  if (batch_ == nullptr || batch_->is_empty()) return;
  std::exception_ptr thrown;
  try {
    static_cast<void>(batch_->step());  // its error is also the outcome of every member
  } catch (...) {                       // for whoever waits for the answers
    thrown = std::current_exception();
  }
  if (thrown) batch_.reset();
  for (Request* each : running_) {
    if (!each->is_in_batch || (each->member->is_active && !thrown)) continue;
    BatchMember& member = *each->member;
    each->is_in_batch = false;
    if (thrown) {
      member.outcome = outcome_of(*each, [&]() -> Status { std::rethrow_exception(thrown); });
      member.is_active = false;
    } else if (!member.outcome && member.outcome.error().code == ErrorCode::kOutOfMemory) {
      // It is as it was, and may have room for a step of its own.
      each->can_share_steps = false;
      member.is_active = true;
    }
  }
}

void SchedulerThread::step_alone(Request& request) {
  BatchMember& member = *request.member;
  member.token.reset();
  member.outcome = outcome_of(request, [&]() -> Status {
    const auto token = member.generation.next();
    if (!token) return token.error();
    member.token = *token;
    return success();
  });
  member.is_active = member.token.has_value();
}

}  // namespace sala
