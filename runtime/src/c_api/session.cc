#include <algorithm>
#include <functional>
#include <limits>
#include <map>

#include "c_api/handles.h"

namespace sala::c {

namespace {

constexpr size_t kFirstSessionOptions = offsetof(sala_session_options, chunk_tokens) + sizeof(int64_t);
constexpr size_t kFirstPrefillOptions = offsetof(sala_prefill_options, user_data) + sizeof(void*);
constexpr size_t kFirstScoreOptions = offsetof(sala_score_options, user_data) + sizeof(void*);
constexpr size_t kFirstSamplingOptions = offsetof(sala_sampling_options, seed) + sizeof(uint64_t);

std::optional<int64_t> unless_zero(int64_t value) { return value != 0 ? std::optional(value) : std::nullopt; }

Expected<SessionOptions> session_options_of(const sala_session_options* options) {
  const auto given = options_of(options, kFirstSessionOptions, sala_session_options SALA_SESSION_OPTIONS_INIT);
  if (!given) return given.error();
  if (given->max_checkpoints < -1) {
    return error(ErrorCode::kInvalidArgument, "max_checkpoints is ", given->max_checkpoints, ", expected -1 or more");
  }
  const auto checkpoints = unless_zero(given->max_checkpoints);
  return SessionOptions{unless_zero(given->max_context), unless_zero(given->chunk_tokens),
                        checkpoints == -1 ? 0 : checkpoints};
}

Expected<std::map<int32_t, double>> logit_bias_of(const sala_logit_bias* entries, size_t count) {
  std::map<int32_t, double> result;
  if (entries == nullptr && count != 0) {
    return error(ErrorCode::kInvalidArgument, "logit_bias_count is ", count, ", expected 0 where logit_bias is NULL");
  }
  if (count > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return error(ErrorCode::kInvalidArgument, "logit_bias_count is ", count,
                 ", and there are no more than 2147483647 tokens");
  }
  for (size_t i = 0; i < count; ++i) {
    if (!result.emplace(entries[i].token_id, entries[i].bias).second) {
      return error(ErrorCode::kInvalidArgument, "logit_bias has token ", entries[i].token_id,
                   " twice, expected each token once");
    }
  }
  return result;
}

std::function<bool(const PrefillProgress&)> progress_of(sala_progress_callback on_progress, void* user_data) {
  if (on_progress == nullptr) return {};
  return [on_progress, user_data](const PrefillProgress& progress) {
    const sala_prefill_progress told{sizeof told, progress.tokens_done, progress.tokens_total.value_or(-1),
                                     progress.seconds};
    return on_progress(&told, user_data) != 0;
  };
}

Status give_scores(const TokenScores& scores, double* logprobs, int32_t* top_ids, double* top_logprobs) {
  std::ranges::copy(scores.logprobs, logprobs);
  std::ranges::copy(scores.top_ids, top_ids);
  std::ranges::copy(scores.top_logprobs, top_logprobs);
  return success();
}

/// Ends `make` of a session.
Status give_session(Expected<Session> made, sala_session** session) {
  if (!made) return made.error();
  *session = new sala_session{std::make_shared<SharedSession>(*std::move(made))};
  return success();
}

}  // namespace

Expected<PrefillOptions> prefill_options_of(const sala_prefill_options* options) {
  const auto given = options_of(options, kFirstPrefillOptions, sala_prefill_options SALA_PREFILL_OPTIONS_INIT);
  if (!given) return given.error();
  PrefillOptions result;
  result.context_length = unless_zero(given->context_length);
  result.on_progress = progress_of(given->on_progress, given->user_data);
  if (given->logit_token_count > 0) SALA_RETURN_IF_ERROR(require({{"logit_tokens", given->logit_tokens}}));
  result.logit_tokens.assign(given->logit_tokens, given->logit_tokens + given->logit_token_count);
  if (given->on_logits != nullptr) {
    result.on_logits = [callback = given->on_logits, user_data = given->user_data](std::span<const int64_t> tokens,
                                                                                   std::span<const float> logits) {
      callback(tokens.data(), tokens.size(), logits.data(), logits.size() / tokens.size(), user_data);
    };
  }
  return result;
}

Expected<SamplingOptions> sampling_options_of(const sala_sampling_options* options) {
  const auto given = options_of(options, kFirstSamplingOptions, sala_sampling_options SALA_SAMPLING_OPTIONS_INIT);
  if (!given) return given.error();
  const auto bias = logit_bias_of(given->logit_bias, given->logit_bias_count);
  if (!bias) return bias.error();
  return SamplingOptions{given->temperature,
                         given->top_k,
                         given->top_p,
                         given->repetition_penalty,
                         given->seed,
                         given->min_p,
                         given->frequency_penalty,
                         given->presence_penalty,
                         *bias};
}

}  // namespace sala::c

extern "C" {

sala_error* sala_session_create(const sala_model* model, const sala_session_options* options, sala_session** session) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"model", model}, {"session", session}}));
    const auto session_options = sala::c::session_options_of(options);
    if (!session_options) return session_options.error();
    return sala::c::give_session(model->model.create_session(*session_options), session);
  });
}

sala_error* sala_session_restore(const sala_model* model, const char* state_file, const sala_session_options* options,
                                 sala_session** session) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"model", model}, {"state_file", state_file}, {"session", session}}));
    const auto session_options = sala::c::session_options_of(options);
    if (!session_options) return session_options.error();
    return sala::c::give_session(model->model.restore(state_file, *session_options), session);
  });
}

sala_error* sala_session_require_room(const sala_session* session, int64_t tokens) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}}));
    return sala::c::exclusively(*session->shared, [&](const sala::Session& each) { return each.require_room(tokens); });
  });
}

sala_error* sala_session_fork(const sala_session* session, sala_session** fork) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}, {"fork", fork}}));
    return sala::c::exclusively(*session->shared,
                                [&](const sala::Session& each) { return sala::c::give_session(each.fork(), fork); });
  });
}

sala_error* sala_session_checkpoint(sala_session* session) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}}));
    return sala::c::exclusively(*session->shared, [](sala::Session& each) { return each.checkpoint(); });
  });
}

const int64_t* sala_session_checkpoints(const sala_session* session, size_t* count) {
  const std::span<const int64_t> positions =
      session != nullptr ? session->shared->session.checkpoints() : std::span<const int64_t>();
  if (count != nullptr) *count = positions.size();
  return positions.data();
}

sala_error* sala_session_rewind(sala_session* session, int64_t position, int64_t* reached) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}, {"reached", reached}}));
    return sala::c::exclusively(*session->shared, [&](sala::Session& each) -> sala::Status {
      const auto at = each.rewind(position);
      if (!at) return at.error();
      *reached = *at;
      return sala::success();
    });
  });
}

void sala_session_destroy(sala_session* session) { delete session; }

int64_t sala_session_position(const sala_session* session) {
  return session != nullptr ? session->shared->session.position() : 0;
}

int64_t sala_session_max_context(const sala_session* session) {
  return session != nullptr ? session->shared->session.max_context() : 0;
}

int64_t sala_session_chunk_tokens(const sala_session* session) {
  return session != nullptr ? session->shared->session.chunk_tokens() : 0;
}

const int32_t* sala_session_tokens(const sala_session* session, size_t* count) {
  const std::span<const int32_t> tokens =
      session != nullptr ? session->shared->session.tokens() : std::span<const int32_t>();
  if (count != nullptr) *count = tokens.size();
  return tokens.data();
}

const float* sala_session_logits(const sala_session* session, size_t* count) {
  const std::span<const float> logits =
      session != nullptr ? session->shared->session.logits() : std::span<const float>();
  if (count != nullptr) *count = logits.size();
  return logits.data();
}

sala_error* sala_session_prefill(sala_session* session, const int32_t* token_ids, size_t count,
                                 const sala_prefill_options* options) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}}));
    if (count > 0) SALA_RETURN_IF_ERROR(sala::c::require({{"token_ids", token_ids}}));
    const auto prefill_options = sala::c::prefill_options_of(options);
    if (!prefill_options) return prefill_options.error();
    return sala::c::exclusively(*session->shared, [&](sala::Session& each) {
      return sala::c::without_value(each.prefill({token_ids, count}, *prefill_options));
    });
  });
}

sala_error* sala_session_score(sala_session* session, const int32_t* token_ids, size_t count,
                               const sala_score_options* options, double* logprobs, int32_t* top_ids,
                               double* top_logprobs) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}}));
    if (count > 0) SALA_RETURN_IF_ERROR(sala::c::require({{"token_ids", token_ids}, {"logprobs", logprobs}}));
    const auto given =
        sala::c::options_of(options, sala::c::kFirstScoreOptions, sala_score_options SALA_SCORE_OPTIONS_INIT);
    if (!given) return given.error();
    if (given->top > 0) SALA_RETURN_IF_ERROR(sala::c::require({{"top_ids", top_ids}, {"top_logprobs", top_logprobs}}));
    return sala::c::exclusively(*session->shared, [&](sala::Session& each) -> sala::Status {
      const auto scores = each.score({token_ids, count}, {given->top, sala::c::unless_zero(given->context_length),
                                                          sala::c::progress_of(given->on_progress, given->user_data)});
      if (!scores) return scores.error();
      return sala::c::give_scores(*scores, logprobs, top_ids, top_logprobs);
    });
  });
}

sala_error* sala_session_decode(sala_session* session, int32_t token_id) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}}));
    return sala::c::exclusively(*session->shared,
                                [&](sala::Session& each) { return sala::c::without_value(each.decode(token_id)); });
  });
}

sala_error* sala_session_sample(sala_session* session, const sala_sampling_options* options, int32_t* token_id) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}, {"token_id", token_id}}));
    const auto sampling = sala::c::sampling_options_of(options);
    if (!sampling) return sampling.error();
    return sala::c::exclusively(*session->shared, [&](sala::Session& each) -> sala::Status {
      const auto drawn = each.sample(*sampling);
      if (!drawn) return drawn.error();
      *token_id = *drawn;
      return sala::success();
    });
  });
}

sala_error* sala_session_save(const sala_session* session, const char* state_file) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}, {"state_file", state_file}}));
    return sala::c::exclusively(*session->shared, [&](const sala::Session& each) { return each.save(state_file); });
  });
}

sala_error* sala_state_target_open(const char* state_file, sala_state_target** target) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"state_file", state_file}, {"target", target}}));
    auto opened = sala::StateTarget::open(state_file);
    if (!opened) return opened.error();
    *target = new sala_state_target{*std::move(opened)};
    return sala::success();
  });
}

sala_error* sala_state_target_require_room(const sala_state_target* target, int64_t bytes) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"target", target}}));
    return target->target.require_room(bytes);
  });
}

void sala_state_target_destroy(sala_state_target* target) { delete target; }

sala_error* sala_session_save_to(const sala_session* session, sala_state_target* target) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}, {"target", target}}));
    return sala::c::exclusively(*session->shared, [&](const sala::Session& each) { return each.save(target->target); });
  });
}

sala_error* sala_session_reset(sala_session* session) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}}));
    return sala::c::exclusively(*session->shared, [](sala::Session& each) { return each.reset(); });
  });
}

void sala_session_stop(sala_session* session) {
  if (session != nullptr) session->shared->session.stop();
}

}  // extern "C"
