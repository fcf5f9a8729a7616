#include "sala/scheduler.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "session/scheduler_thread.h"

namespace sala {

std::string_view name_of(RequestStage stage) {
  switch (stage) {
    case RequestStage::kWaiting:
      return "waiting";
    case RequestStage::kPrefill:
      return "prefill";
    case RequestStage::kGenerate:
      return "generate";
    case RequestStage::kEnded:
      break;
  }
  return "ended";
}

Answer::Answer(std::shared_ptr<SchedulerThread> thread, std::unique_ptr<Request> request)
    : thread_(std::move(thread)), request_(std::move(request)) {}
Answer::Answer(Answer&&) noexcept = default;
Answer& Answer::operator=(Answer&& other) noexcept {
  std::swap(thread_, other.thread_);
  std::swap(request_, other.request_);
  return *this;
}
Answer::~Answer() {
  if (request_ != nullptr) SchedulerThread::let_go(std::move(thread_), std::move(request_));
}

Expected<std::optional<int32_t>> Answer::next() { return thread_->next(*request_); }
bool Answer::wait_for(std::chrono::duration<double> time) const { return thread_->wait_for(*request_, time); }
void Answer::wait() const { thread_->wait(*request_); }
const TokenLogprobs* Answer::logprobs() const { return request_->last_logprobs ? &*request_->last_logprobs : nullptr; }
void Answer::cancel() noexcept { thread_->cancel(*request_); }
const TokenScores* Answer::prompt_scores() const { return thread_->prompt_scores(*request_); }
FinishReason Answer::finish_reason() const { return thread_->finish_reason(*request_); }
RequestProgress Answer::progress() const { return thread_->progress(*request_); }

Scheduler::Scheduler(std::shared_ptr<SchedulerThread> thread) : thread_(std::move(thread)) {}
Scheduler::Scheduler(Scheduler&&) noexcept = default;
Scheduler& Scheduler::operator=(Scheduler&& other) noexcept {
  std::swap(thread_, other.thread_);
  return *this;
}
Scheduler::~Scheduler() {
  if (thread_ != nullptr) SchedulerThread::close(thread_);  // a copy: callbacks may still submit
}

Expected<Scheduler> Scheduler::create(const Model& model, SchedulerOptions options) {
  auto thread = SchedulerThread::create(model.data_, options);
  if (!thread) return thread.error();
  return Scheduler(*std::move(thread));
}

namespace {

Status check_checkpoints(std::span<const int64_t> positions, const SessionCore& session, int64_t prompt_tokens) {
  const int64_t first = session.position(), end = first + prompt_tokens;
  if (!positions.empty() && session.checkpoints().most() == 0) {
    return error(ErrorCode::kInvalidArgument,
                 "checkpoints are asked for, and the session has max_checkpoints 0: make a "
                 "session that keeps some");
  }
  int64_t before = first;
  for (const int64_t each : positions) {
    if (each <= before || each >= end) {
      return error(ErrorCode::kInvalidArgument, "checkpoints has ", each,
                   ", expected positions within the prompt, from ", first + 1, " to ", end - 1, ", in rising order");
    }
    before = each;
  }
  return success();
}

}  // namespace

Expected<Answer> Scheduler::submit(Session& session, std::vector<int32_t> prompt, RequestOptions options) {
  SessionCore& core = *session.core_;
  if (&core.model() != &thread_->model()) {
    return error(ErrorCode::kInvalidArgument, "the session is of another model than the scheduler");
  }
  if (const double wait = options.max_wait.value_or(0); !std::isfinite(wait) || wait < 0) {
    return error(ErrorCode::kInvalidArgument, "max_wait is ", wait, ", expected 0 or more seconds");
  }
  SALA_RETURN_IF_ERROR(core.usable());
  SALA_RETURN_IF_ERROR(check_generate(options.generate, core.model().config));
  if (options.prompt_logprobs) SALA_RETURN_IF_ERROR(check_logprobs(*options.prompt_logprobs, "prompt_logprobs"));
  if (prompt.empty() && core.position() == 0) {
    return error(ErrorCode::kEmptyPrompt, "the prompt has no tokens and the session no context: give at least one");
  }
  SALA_RETURN_IF_ERROR(core.check_fits(core.position(), static_cast<int64_t>(prompt.size())));
  SALA_RETURN_IF_ERROR(core.check_tokens(prompt));
  SALA_RETURN_IF_ERROR(check_checkpoints(options.checkpoints, core, static_cast<int64_t>(prompt.size())));
  if (!options.generate.stop_tokens) options.generate.stop_tokens = core.model().config.eos_token_ids;
  auto request = std::make_unique<Request>(core, std::move(prompt), std::move(options));
  const int64_t begin = core.position() + static_cast<int64_t>(request->prompt.size());
  const int64_t drawn = std::min(request->options.generate.max_new_tokens, core.max_context() - begin);
  request->last_length = begin + std::max<int64_t>(drawn - 1, 0);  // the last token does not run
  SALA_RETURN_IF_ERROR(thread_->submit(*request));
  return Answer(thread_, std::move(request));
}

}  // namespace sala
