// How a session runs ahead of its context and comes back.
//
// A step with drafts writes rows of keys and values behind the context, which the next steps overwrite, as they do
// after `rewind`. A Lightning state is of one position. So the states are copied before, the copy comes back when a
// draft was wrong, and the tokens which they then lack run again at the head of the next step.

#include <algorithm>

#include "session/session_core.h"

namespace sala {

namespace {

constexpr int64_t kMostReplay = 16;  // tokens that a step with drafts runs again

}  // namespace

bool SessionCore::has_run_pending() const { return pending_token() && !ahead_.empty() && ahead_.front() == pending_; }

std::vector<int32_t> SessionCore::propose(int64_t most) {
  lookup_.extend(tokens_.view());
  return lookup_.drafts(tokens_.view(), most);
}

bool SessionCore::are_alike(int64_t first, int64_t last) const {
  const int64_t dense_len = model_->config.dense_len;
  return (first + 1 < dense_len) == (last + 1 < dense_len);
}

int64_t SessionCore::states_to_begin_with() const {
  return state_length_ > past_length_ ? copy_length_ : state_length_;
}

int64_t SessionCore::most_drafts() const {
  const int64_t first = states_to_begin_with(), replay = past_length_ - first;
  if (replay > kMostReplay || !are_alike(first, past_length_)) return 0;
  int64_t most = std::min(
      {chunk_tokens_ - replay - 1, model_->engine->limits().max_logit_rows - 1, max_context_ - position() - 1});
  if (const int64_t dense = model_->config.dense_len - 1 - position(); dense >= 0) most = std::min(most, dense);
  return std::max<int64_t>(most, 0);
}

int64_t SessionCore::bytes_for_drafts() const {
  if (!copies_.empty()) return 0;
  int64_t bytes = 0;
  for (size_t i = 0; i < caches_.size(); ++i) {
    if (model_->step.caches[i].rows == CacheRows::kAll) bytes += caches_[i].buffer.bytes();
  }
  return bytes;
}

Status SessionCore::make_copies() {
  if (!copies_.empty()) return success();
  Memory& memory = model_->engine->memory();
  std::vector<Buffer> made;
  for (size_t i = 0; i < caches_.size(); ++i) {
    if (model_->step.caches[i].rows != CacheRows::kAll) continue;
    auto buffer = memory.allocate(caches_[i].buffer.bytes());
    if (!buffer) return buffer.error();
    made.push_back(*std::move(buffer));
    SALA_RETURN_IF_ERROR(memory.claim(made.back(), {0, made.back().bytes()}));
  }
  copies_ = std::move(made);
  return success();
}

Status SessionCore::copy_states(bool back) {
  auto copy = copies_.begin();
  for (size_t i = 0; i < caches_.size(); ++i) {
    if (model_->step.caches[i].rows != CacheRows::kAll) continue;
    void* const own = caches_[i].buffer.data();
    void* const kept = (copy++)->data();
    SALA_RETURN_IF_ERROR(
        model_->engine->memory().copy(back ? own : kept, back ? kept : own, caches_[i].buffer.bytes()));
  }
  return success();
}

Status SessionCore::bring_back() {
  ahead_ = {};
  if (state_length_ <= past_length_) return success();
  poisoned_ = true;  // until the states are those of the copy
  if (const Status copied = copy_states(true); !copied) return lose(copied.error());
  poisoned_ = false;
  state_length_ = copy_length_;
  return success();
}

Status SessionCore::settle() {
  if (state_length_ == past_length_) return success();
  SALA_RETURN_IF_ERROR(bring_back());
  const auto missing =
      tokens_.view().subspan(static_cast<size_t>(state_length_), static_cast<size_t>(past_length_ - state_length_));
  // The logits of these tokens are known, and stay as they are.
  std::vector<float> unread(logits_.size());
  SALA_RETURN_IF_ERROR(choose_rows(std::ssize(missing), {}));
  SALA_RETURN_IF_ERROR(claim_for_step(state_length_, std::ssize(missing)));
  poisoned_ = true;
  const Status ran = run_step(state_length_, missing, past_length_, unread);
  if (!ran) return lose(ran.error());
  poisoned_ = false;
  state_length_ = past_length_;
  return success();
}

void SessionCore::step_ahead() {
  ahead_ = ahead_.subspan(1);
  ++past_length_;
  ++changes_;
  has_logits_ = true;
  const size_t row = drafts_.size() - ahead_.size();
  std::ranges::copy(std::span(row_logits_).subspan(row * logits_.size(), logits_.size()), logits_.begin());
}

Expected<int64_t> SessionCore::run_pending(std::span<const int32_t> drafts) {
  if (has_run_pending()) {
    step_ahead();
    return int64_t{0};
  }
  drafts = drafts.first(std::min(drafts.size(), static_cast<size_t>(most_drafts())));
  SALA_RETURN_IF_ERROR(bring_back());
  if (!are_alike(state_length_, past_length_)) SALA_RETURN_IF_ERROR(settle());
  if (!drafts.empty()) {
    Status ran = make_copies();
    if (ran) ran = run_with(drafts);
    if (ran) return std::ssize(drafts);
    // Where there is no room for drafts or copies of the states, there may be for the token alone.
    if (ran.error().code != ErrorCode::kOutOfMemory) return ran.error();
  }
  SALA_RETURN_IF_ERROR(run_with({}));
  return int64_t{0};
}

Status SessionCore::run_with(std::span<const int32_t> drafts) {
  const int64_t first = state_length_;
  const auto known = tokens_.view().subspan(static_cast<size_t>(first));
  std::vector<int32_t> ids(known.begin(), known.end());
  const auto pending = static_cast<int32_t>(ids.size()) - 1;
  ids.insert(ids.end(), drafts.begin(), drafts.end());
  const auto count = std::ssize(ids);
  std::vector<int32_t> rows;
  for (int32_t row = pending; row < count; ++row) rows.push_back(row);
  SALA_RETURN_IF_ERROR(choose_rows(count, rows));
  SALA_RETURN_IF_ERROR(claim_for_step(first, count));
  begin_step();
  if (!drafts.empty() && copy_length_ != first) {
    if (const Status copied = copy_states(false); !copied) return lose(copied.error());
    copy_length_ = first;
  }
  const Status ran = run_step(first, ids, first + count, step_rows());
  if (!ran) return lose(ran.error());
  poisoned_ = false;
  has_logits_ = true;
  past_length_ = position();
  state_length_ = first + count;
  drafts_.assign(drafts.begin(), drafts.end());
  ahead_ = drafts_;
  if (!drafts.empty()) std::ranges::copy(std::span(row_logits_).first(logits_.size()), logits_.begin());
  return success();
}

}  // namespace sala
