#include "sala/prefiller.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "session/session_core.h"

namespace sala {

namespace {

constexpr int64_t kLongestContext = INT32_MAX;

}  // namespace

Prefiller::Prefiller(SessionCore& core, PrefillOptions options, std::optional<int64_t> tokens_total)
    : core_(&core),
      options_(std::move(options)),
      tokens_total_(tokens_total),
      first_position_(core.position()),
      session_changes_(core.changes()),
      start_(std::chrono::steady_clock::now()) {
  if (const auto pending = core.pending_token()) waiting_.push_back(*pending);
}

Expected<Prefiller> Prefiller::create(Session& session, PrefillOptions options, std::optional<int64_t> tokens_total) {
  return create(*session.core_, std::move(options), tokens_total);
}

Expected<Prefiller> Prefiller::create(SessionCore& core, PrefillOptions options, std::optional<int64_t> tokens_total) {
  SALA_RETURN_IF_ERROR(core.usable());
  if (const int64_t most = kLongestContext - core.position(); tokens_total.value_or(0) < 0 || tokens_total > most) {
    return error(ErrorCode::kInvalidArgument, "tokens_total is ", *tokens_total, ", expected 0 to ", most,
                 ", and none if it is unknown");
  }
  const int64_t least = core.position() + tokens_total.value_or(0);
  if (const int64_t given = options.context_length.value_or(least); given < least || given > kLongestContext) {
    return error(ErrorCode::kInvalidArgument, "context_length is ", given, ", expected ", least, " to ",
                 kLongestContext, ": it counts the whole context, what came before included");
  }
  SALA_RETURN_IF_ERROR(check_logit_tokens(options, tokens_total));
  SALA_RETURN_IF_ERROR(core.require_room(tokens_total.value_or(0)));
  return Prefiller(core, std::move(options), tokens_total);
}

Status Prefiller::check_logit_tokens(const PrefillOptions& options, std::optional<int64_t> tokens_total) {
  if (options.logit_tokens.empty()) return success();
  if (!tokens_total) {
    return error(ErrorCode::kInvalidArgument,
                 "logit_tokens are given for a stream of unknown length: give tokens_total, the length");
  }
  if (!options.on_logits) {
    return error(ErrorCode::kInvalidArgument, "logit_tokens are given without on_logits, which takes their logits");
  }
  int64_t before = -1;
  for (const int64_t token : options.logit_tokens) {
    if (token < 0 || token >= *tokens_total) {
      return error(ErrorCode::kInvalidArgument, "logit_tokens has ", token, ", expected 0 to ", *tokens_total - 1,
                   ", the tokens of this call");
    }
    if (token <= before) {
      return error(ErrorCode::kInvalidArgument, "logit_tokens has ", token, " behind ", before,
                   ", expected rising numbers");
    }
    before = token;
  }
  return success();
}

Status Prefiller::check_usable() const {
  SALA_RETURN_IF_ERROR(core_->usable());
  if (has_ended_) {
    return error(ErrorCode::kInvalidArgument, "this prefill has ended, the session holds ", core_->position(),
                 " tokens: make another prefiller for those that follow");
  }
  if (core_->changes() != session_changes_) {
    return error(ErrorCode::kInvalidArgument,
                 "the session was used for something else before this prefill was finished: finish it first");
  }
  return success();
}

int64_t Prefiller::length() const { return core_->past_length() + static_cast<int64_t>(waiting_.size()); }

Status Prefiller::feed(std::span<const int32_t> token_ids) {
  SALA_RETURN_IF_ERROR(check_usable());
  if (token_ids.empty()) return success();
  const int64_t before = length();
  const auto most = static_cast<size_t>(std::numeric_limits<int64_t>::max() - before);
  const int64_t after = before + static_cast<int64_t>(std::min(token_ids.size(), most));
  SALA_RETURN_IF_ERROR(core_->check_fits(before, after - before));
  if (options_.context_length && after > *options_.context_length) {
    return error(ErrorCode::kInvalidArgument, "context_length is ", *options_.context_length,
                 ", but the context grows to ", after, ": it counts the whole context");
  }
  SALA_RETURN_IF_ERROR(core_->check_tokens(token_ids));
  waiting_.insert(waiting_.end(), token_ids.begin(), token_ids.end());
  tokens_fed_ += static_cast<int64_t>(token_ids.size());
  if (!options_.context_length && after < core_->model().config.dense_len) return success();
  return run_chunks(static_cast<size_t>(core_->chunk_tokens()));
}

Expected<std::span<const float>> Prefiller::finish() {
  SALA_RETURN_IF_ERROR(check_usable());
  if (tokens_fed_ == 0) {
    return error(ErrorCode::kEmptyPrompt, "the prompt has no tokens: give at least one");
  }
  SALA_RETURN_IF_ERROR(run_chunks(1));
  has_ended_ = true;
  use_up_stop();
  core_->drop_row_logits();
  const bool goes_on = options_.context_length.value_or(0) > core_->past_length();
  if (!is_decode_ && !goes_on) SALA_RETURN_IF_ERROR(core_->keep_checkpoint(true));
  return core_->logits();
}

size_t Prefiller::most_of_chunk() const {
  const int64_t chunk = core_->chunk_tokens();
  if (checkpoints_.empty()) return static_cast<size_t>(chunk);
  return static_cast<size_t>(std::min(chunk, checkpoints_.back() - core_->past_length()));
}

size_t Prefiller::most_of_step() const {
  const auto left = std::span(options_.logit_tokens).subspan(logit_tokens_done_);
  if (left.empty()) return std::numeric_limits<size_t>::max();
  // Each step gives the logits of its last token. So the one behind which there are enough must be the last.
  const auto most = static_cast<size_t>(core_->model().engine->limits().max_logit_rows);
  if (left.size() < most) return std::numeric_limits<size_t>::max();
  return static_cast<size_t>(first_position_ + left[most - 1] + 1 - core_->past_length());
}

std::span<const int64_t> Prefiller::logit_tokens_of_step(size_t tokens) const {
  const auto left = std::span(options_.logit_tokens).subspan(logit_tokens_done_);
  const int64_t end = core_->past_length() + static_cast<int64_t>(tokens) - first_position_;
  return left.first(static_cast<size_t>(std::ranges::lower_bound(left, end) - left.begin()));
}

Status Prefiller::run_chunks(size_t least) {
  if (waiting_.size() < std::min(least, most_of_chunk())) return success();
  // In the middle of a stream this is no more than its length so far. All that matters is that it is sparse already.
  const int64_t context_length = options_.context_length.value_or(length());
  const std::vector<int32_t> taken = std::exchange(waiting_, {});
  std::span<const int32_t> rest = taken;
  // Until all has run: neither an error nor an exception of a callback lets a prompt go on that lost tokens.
  has_ended_ = true;
  struct AtTheEnd {
    Prefiller& prefiller;
    ~AtTheEnd() {
      if (!prefiller.has_ended_) return;
      prefiller.use_up_stop();
      prefiller.core_->drop_row_logits();
    }
  } at_the_end{*this};
  while (!rest.empty() && rest.size() >= std::min(least, most_of_chunk())) {
    const auto chunk = rest.first(std::min(most_of_chunk(), rest.size()));
    SALA_RETURN_IF_ERROR(run_chunk(chunk, context_length));
    rest = rest.subspan(chunk.size());
  }
  waiting_.assign(rest.begin(), rest.end());
  has_ended_ = false;
  return success();
}

void Prefiller::use_up_stop() noexcept {
  if (!is_decode_) core_->stop_requested() = false;
}

Status Prefiller::check_stop() const {
  if (!is_told_to_stop_ && (is_decode_ || !core_->stop_requested())) return success();
  return error(ErrorCode::kStopped, "prefill was stopped after ", tokens_done_, " tokens: the session holds ",
               core_->position(), ", go on with those that are missing");
}

Status Prefiller::run_chunk(std::span<const int32_t> token_ids, int64_t context_length) {
  SALA_RETURN_IF_ERROR(check_stop());
  if (!is_decode_ && tokens_done_ == 0) SALA_RETURN_IF_ERROR(core_->keep_checkpoint(true));
  for (std::span<const int32_t> rest = token_ids; !rest.empty();) {
    SALA_RETURN_IF_ERROR(check_stop());
    const auto step = rest.first(std::min(most_of_step(), rest.size()));
    const int64_t before = core_->position();
    const auto logit_tokens = logit_tokens_of_step(step.size());
    SALA_RETURN_IF_ERROR(run_step(step, context_length));
    rest = rest.subspan(step.size());
    if (!is_decode_) core_->end_prompt();
    if (rest.empty() && !is_decode_) SALA_RETURN_IF_ERROR(keep_due_checkpoint());
    session_changes_ = core_->changes();
    tokens_done_ += core_->position() - before;
    report(logit_tokens);
  }
  return success();
}

Status Prefiller::run_step(std::span<const int32_t> token_ids, int64_t context_length) {
  rows_.clear();
  for (const int64_t token : logit_tokens_of_step(token_ids.size())) {
    rows_.push_back(static_cast<int32_t>(first_position_ + token - core_->past_length()));
  }
  return core_->run(token_ids, context_length, rows_);
}

Status Prefiller::keep_due_checkpoint() {
  const bool is_wanted = !checkpoints_.empty() && checkpoints_.back() == core_->past_length();
  if (is_wanted) checkpoints_.pop_back();
  if (!is_wanted && !core_->checkpoints().is_due(core_->past_length())) return success();
  return core_->keep_checkpoint(is_wanted);
}

void Prefiller::report(std::span<const int64_t> logit_tokens) {
  logit_tokens_done_ += logit_tokens.size();
  if (!logit_tokens.empty()) options_.on_logits(logit_tokens, core_->row_logits());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  if (options_.on_progress && !options_.on_progress({tokens_done_, tokens_total_, elapsed.count()})) {
    is_told_to_stop_ = true;
  }
}

}  // namespace sala
