#include <limits>

#include "c_api/handles.h"

namespace sala::c {

namespace {

constexpr size_t kFirstGenerateOptions = offsetof(sala_generate_options, stop_token_count) + sizeof(size_t);

static_assert(SALA_FINISH_NONE == static_cast<int32_t>(FinishReason::kNone));
static_assert(SALA_FINISH_STOP_TOKEN == static_cast<int32_t>(FinishReason::kStopToken));
static_assert(SALA_FINISH_MAX_NEW_TOKENS == static_cast<int32_t>(FinishReason::kMaxNewTokens));
static_assert(SALA_FINISH_MAX_CONTEXT == static_cast<int32_t>(FinishReason::kMaxContext));
static_assert(SALA_FINISH_CANCELLED == static_cast<int32_t>(FinishReason::kCancelled));

}  // namespace

Expected<GenerateOptions> generate_options_of(const sala_generate_options* options,
                                              const sala_sampling_options* sampling) {
  const auto given = options_of(options, kFirstGenerateOptions, sala_generate_options SALA_GENERATE_OPTIONS_INIT);
  if (!given) return given.error();
  const auto sampling_options = sampling_options_of(sampling);
  if (!sampling_options) return sampling_options.error();
  GenerateOptions result{given->max_new_tokens, *sampling_options, std::nullopt};
  if (given->stop_tokens == nullptr && given->stop_token_count != 0) {
    return error(ErrorCode::kInvalidArgument, "stop_token_count is ", given->stop_token_count,
                 ", expected 0 where stop_tokens is NULL");
  }
  if (given->stop_token_count > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return error(ErrorCode::kInvalidArgument, "stop_token_count is ", given->stop_token_count,
                 ", and there are no more than 2147483647 tokens");
  }
  if (given->stop_tokens != nullptr) {
    result.stop_tokens.emplace(given->stop_tokens, given->stop_tokens + given->stop_token_count);
  }
  if (given->speculation != 0) result.speculation = given->speculation;
  return result;
}

}  // namespace sala::c

extern "C" {

sala_error* sala_prefiller_create(sala_session* session, const sala_prefill_options* options, int64_t tokens_total,
                                  sala_prefiller** prefiller) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}, {"prefiller", prefiller}}));
    if (tokens_total < -1) {
      return sala::error(sala::ErrorCode::kInvalidArgument, "tokens_total is ", tokens_total,
                         ", expected a number of tokens, or -1 if it is unknown");
    }
    const auto prefill_options = sala::c::prefill_options_of(options);
    if (!prefill_options) return prefill_options.error();
    const auto total = tokens_total >= 0 ? std::optional(tokens_total) : std::nullopt;
    return sala::c::exclusively(*session->shared, [&](sala::Session& each) -> sala::Status {
      auto created = sala::Prefiller::create(each, *prefill_options, total);
      if (!created) return created.error();
      *prefiller = new sala_prefiller{session->shared, *std::move(created)};
      return sala::success();
    });
  });
}

sala_error* sala_prefiller_feed(sala_prefiller* prefiller, const int32_t* token_ids, size_t count) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"prefiller", prefiller}}));
    if (count > 0) SALA_RETURN_IF_ERROR(sala::c::require({{"token_ids", token_ids}}));
    return sala::c::exclusively(*prefiller->shared,
                                [&](sala::Session&) { return prefiller->prefiller.feed({token_ids, count}); });
  });
}

sala_error* sala_prefiller_finish(sala_prefiller* prefiller) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"prefiller", prefiller}}));
    return sala::c::exclusively(*prefiller->shared,
                                [&](sala::Session&) { return sala::c::without_value(prefiller->prefiller.finish()); });
  });
}

void sala_prefiller_destroy(sala_prefiller* prefiller) { delete prefiller; }

sala_error* sala_model_check_generate(const sala_model* model, const sala_generate_options* options,
                                      const sala_sampling_options* sampling) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"model", model}}));
    const auto generate_options = sala::c::generate_options_of(options, sampling);
    if (!generate_options) return generate_options.error();
    return model->model.check(*generate_options);
  });
}

sala_error* sala_generation_create(sala_session* session, const sala_generate_options* options,
                                   const sala_sampling_options* sampling, sala_generation** generation) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"session", session}, {"generation", generation}}));
    auto generate_options = sala::c::generate_options_of(options, sampling);
    if (!generate_options) return generate_options.error();
    return sala::c::exclusively(*session->shared, [&](sala::Session& each) -> sala::Status {
      auto created = each.generate(*std::move(generate_options));
      if (!created) return created.error();
      *generation = new sala_generation{session->shared, *std::move(created)};
      return sala::success();
    });
  });
}

sala_error* sala_generation_next(sala_generation* generation, int32_t* token_id, int32_t* finish) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"generation", generation}, {"token_id", token_id}, {"finish", finish}}));
    return sala::c::exclusively(*generation->shared, [&](sala::Session&) -> sala::Status {
      const auto token = generation->generation.next();
      if (!token) return token.error();
      if (*token) *token_id = **token;
      *finish = static_cast<int32_t>(generation->generation.finish_reason());
      return sala::success();
    });
  });
}

void sala_generation_destroy(sala_generation* generation) { delete generation; }

}  // extern "C"
