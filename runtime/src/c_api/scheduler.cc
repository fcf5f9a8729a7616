#include <algorithm>
#include <chrono>

#include "c_api/handles.h"

namespace sala::c {

namespace {

constexpr size_t kFirstSchedulerOptions = offsetof(sala_scheduler_options, prefill_share) + sizeof(double);
constexpr size_t kFirstRequestOptions = offsetof(sala_request_options, user_data) + sizeof(void*);
constexpr size_t kFirstProgress = offsetof(sala_request_progress, new_tokens) + sizeof(int64_t);

static_assert(SALA_STAGE_WAITING == static_cast<int32_t>(RequestStage::kWaiting));
static_assert(SALA_STAGE_PREFILL == static_cast<int32_t>(RequestStage::kPrefill));
static_assert(SALA_STAGE_GENERATE == static_cast<int32_t>(RequestStage::kGenerate));
static_assert(SALA_STAGE_ENDED == static_cast<int32_t>(RequestStage::kEnded));

Expected<SchedulerOptions> scheduler_options_of(const sala_scheduler_options* options) {
  const auto given = options_of(options, kFirstSchedulerOptions, sala_scheduler_options SALA_SCHEDULER_OPTIONS_INIT);
  if (!given) return given.error();
  if (given->max_waiting < -1) {
    return error(ErrorCode::kInvalidArgument, "max_waiting is ", given->max_waiting, ", expected -1 or more");
  }
  SchedulerOptions result;
  if (given->max_running != 0) result.max_running = given->max_running;
  if (given->max_waiting != 0) result.max_waiting = std::max<int64_t>(given->max_waiting, 0);
  if (given->max_cache_bytes != 0) result.max_cache_bytes = given->max_cache_bytes;
  if (given->prefill_share != 0) result.prefill_share = given->prefill_share;
  return result;
}

Expected<RequestOptions> request_options_of(const sala_request_options* options) {
  const auto given = options_of(options, kFirstRequestOptions, sala_request_options SALA_REQUEST_OPTIONS_INIT);
  if (!given) return given.error();
  auto generate = generate_options_of(given->generate, given->sampling);
  if (!generate) return generate.error();
  RequestOptions result;
  result.generate = *std::move(generate);
  result.priority = given->priority;
  if (given->max_wait != 0) result.max_wait = given->max_wait;
  if (given->on_token != nullptr) {
    result.on_token = [tell = given->on_token, data = given->user_data](int32_t token) {
      return tell(token, data) != 0;
    };
  }
  return result;
}

/// Before the prompt is copied, which may be of any length.
Status check_room(const Session& session, size_t count) {
  const int64_t room = session.max_context() - session.position();
  if (count <= static_cast<size_t>(room)) return success();
  return error(ErrorCode::kContextExceeded, "the prompt has ", count, " tokens, and the session has room for ", room,
               ": make a session of larger max_context");
}

Status submit(sala_scheduler& scheduler, const std::shared_ptr<SharedSession>& shared,
              std::span<const int32_t> token_ids, RequestOptions options, sala_answer** answer) {
  AtWork at_work(*shared);
  SALA_RETURN_IF_ERROR(at_work.check());
  SALA_RETURN_IF_ERROR(check_room(shared->session, token_ids.size()));
  // The request keeps the session: an answer that is destroyed in the scheduler's thread is gone before it.
  options.on_end = [shared](const Status&) { shared->busy = false; };
  auto submitted =
      scheduler.scheduler.submit(shared->session, {token_ids.begin(), token_ids.end()}, std::move(options));
  if (!submitted) return submitted.error();
  at_work.leave();
  *answer = new sala_answer{*std::move(submitted)};
  return success();
}

}  // namespace

}  // namespace sala::c

extern "C" {

sala_error* sala_scheduler_create(const sala_model* model, const sala_scheduler_options* options,
                                  sala_scheduler** scheduler) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"model", model}, {"scheduler", scheduler}}));
    const auto scheduler_options = sala::c::scheduler_options_of(options);
    if (!scheduler_options) return scheduler_options.error();
    auto created = sala::Scheduler::create(model->model, *scheduler_options);
    if (!created) return created.error();
    *scheduler = new sala_scheduler{*std::move(created)};
    return sala::success();
  });
}

void sala_scheduler_destroy(sala_scheduler* scheduler) { delete scheduler; }

sala_error* sala_scheduler_submit(sala_scheduler* scheduler, sala_session* session, const int32_t* token_ids,
                                  size_t count, const sala_request_options* options, sala_answer** answer) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"scheduler", scheduler}, {"session", session}, {"answer", answer}}));
    if (count > 0) SALA_RETURN_IF_ERROR(sala::c::require({{"token_ids", token_ids}}));
    auto request_options = sala::c::request_options_of(options);
    if (!request_options) return request_options.error();
    return sala::c::submit(*scheduler, session->shared, {token_ids, count}, *std::move(request_options), answer);
  });
}

sala_error* sala_answer_next(sala_answer* answer, int32_t* token_id, int32_t* finish) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"answer", answer}, {"token_id", token_id}, {"finish", finish}}));
    const auto token = answer->answer.next();
    if (!token) return token.error();
    if (*token) *token_id = **token;
    *finish = *token ? SALA_FINISH_NONE : static_cast<int32_t>(answer->answer.finish_reason());
    return sala::success();
  });
}

int32_t sala_answer_wait(const sala_answer* answer, double seconds) {
  if (answer == nullptr) return 0;
  return answer->answer.wait_for(std::chrono::duration<double>(seconds)) ? 1 : 0;
}

void sala_answer_cancel(sala_answer* answer) {
  if (answer != nullptr) answer->answer.cancel();
}

sala_error* sala_answer_progress(const sala_answer* answer, sala_request_progress* progress) {
  return sala::c::guarded([&]() -> sala::Status {
    SALA_RETURN_IF_ERROR(sala::c::require({{"answer", answer}, {"progress", progress}}));
    const auto given =
        sala::c::options_of(progress, sala::c::kFirstProgress, sala_request_progress SALA_REQUEST_PROGRESS_INIT);
    if (!given) return given.error();
    const sala::RequestProgress now = answer->answer.progress();
    const sala_request_progress told{given->struct_size, static_cast<int32_t>(now.stage), now.prompt_tokens_done,
                                     now.prompt_tokens, now.new_tokens};
    std::memcpy(progress, &told, std::min(given->struct_size, sizeof told));
    return sala::success();
  });
}

void sala_answer_destroy(sala_answer* answer) { delete answer; }

}  // extern "C"
