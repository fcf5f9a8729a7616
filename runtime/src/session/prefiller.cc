#include "sala/prefiller.h"

#include <algorithm>

#include "session/session_core.h"

namespace sala {

namespace {

// A context length that is sparse for every model.
constexpr int64_t kUnknownContextLength = INT32_MAX;

}  // namespace

Prefiller::Prefiller(SessionCore& core, PrefillOptions options, std::optional<int64_t> tokens_total)
    : core_(&core),
      options_(std::move(options)),
      tokens_total_(tokens_total),
      session_position_(core.position()),
      start_(std::chrono::steady_clock::now()) {
  if (const auto pending = core.pending_token()) waiting_.push_back(*pending);
}

Expected<Prefiller> Prefiller::create(Session& session, PrefillOptions options, std::optional<int64_t> tokens_total) {
  return create(*session.core_, std::move(options), tokens_total);
}

Expected<Prefiller> Prefiller::create(SessionCore& core, PrefillOptions options, std::optional<int64_t> tokens_total) {
  SALA_RETURN_IF_ERROR(core.usable());
  const int64_t least = core.position() + tokens_total.value_or(0);
  if (!options.context_length) options.context_length = tokens_total ? least : kUnknownContextLength;
  if (*options.context_length < least || *options.context_length > kUnknownContextLength) {
    return error(ErrorCode::kInvalidArgument, "context_length is ", *options.context_length, ", expected ", least,
                 " to ", kUnknownContextLength, ": it counts the whole context, what came before included");
  }
  core.stop_requested() = false;
  return Prefiller(core, std::move(options), tokens_total);
}

Status Prefiller::check_session() const {
  SALA_RETURN_IF_ERROR(core_->usable());
  if (core_->position() != session_position_) {
    return error(ErrorCode::kInvalidArgument,
                 "the session was used for something else before this prefill was finished: ", "finish it first");
  }
  return success();
}

Status Prefiller::feed(std::span<const int32_t> token_ids) {
  SALA_RETURN_IF_ERROR(check_session());
  SALA_RETURN_IF_ERROR(core_->check_tokens(token_ids));
  const int64_t before = core_->past_length() + static_cast<int64_t>(waiting_.size());
  const int64_t after = before + static_cast<int64_t>(token_ids.size());
  if (after > core_->max_context()) {
    return error(ErrorCode::kContextExceeded, "the prompt needs a context of at least ", after,
                 " tokens, max_context is ", core_->max_context(), " and ", before,
                 " are taken: make a session of larger max_context");
  }
  if (after > *options_.context_length) {
    return error(ErrorCode::kInvalidArgument, "context_length is ", *options_.context_length,
                 ", but the context grows to ", after, ": it counts the whole context");
  }
  tokens_fed_ += static_cast<int64_t>(token_ids.size());
  const size_t chunk = static_cast<size_t>(core_->chunk_tokens());
  while (waiting_.size() + token_ids.size() >= chunk) {
    const size_t taken = chunk - waiting_.size();
    waiting_.insert(waiting_.end(), token_ids.begin(), token_ids.begin() + static_cast<std::ptrdiff_t>(taken));
    token_ids = token_ids.subspan(taken);
    const std::vector<int32_t> step = std::exchange(waiting_, {});
    SALA_RETURN_IF_ERROR(run_chunk(step));
  }
  waiting_.insert(waiting_.end(), token_ids.begin(), token_ids.end());
  return success();
}

Expected<std::span<const float>> Prefiller::finish() {
  SALA_RETURN_IF_ERROR(check_session());
  if (tokens_fed_ == 0) {
    return error(ErrorCode::kEmptyPrompt, "the prompt has no tokens: give at least one");
  }
  if (!waiting_.empty()) {
    const std::vector<int32_t> step = std::exchange(waiting_, {});
    SALA_RETURN_IF_ERROR(run_chunk(step));
  }
  return core_->logits();
}

Status Prefiller::run_chunk(std::span<const int32_t> token_ids) {
  if (core_->stop_requested().exchange(false)) {
    return error(ErrorCode::kStopped, "prefill was stopped after ", tokens_done_,
                 " tokens; the session holds them and can go on");
  }
  const int64_t before = core_->position();
  SALA_RETURN_IF_ERROR(core_->run(token_ids, *options_.context_length));
  session_position_ = core_->position();
  tokens_done_ += session_position_ - before;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
  if (options_.on_progress && !options_.on_progress({tokens_done_, tokens_total_, elapsed.count()})) {
    core_->stop_requested() = true;
  }
  return success();
}

}  // namespace sala
