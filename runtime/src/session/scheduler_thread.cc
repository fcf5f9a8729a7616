#include "session/scheduler_thread.h"

#include <algorithm>
#include <csignal>
#include <system_error>
#include <utility>

namespace sala {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kDefaultMaxRunning = 8;
constexpr int64_t kMostRunning = 1024;  // where each takes steps of its own

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool can_share_steps(const ModelData& model) {
  return model.engine->limits().max_batch > 1 && model.engine->memory().page_bytes() > 1;
}

Status check(const SchedulerOptions& options, int64_t max_running, int64_t most_running) {
  if (max_running < 1 || max_running > most_running) {
    return error(ErrorCode::kInvalidArgument, "max_running is ", max_running, ", expected 1 to ", most_running,
                 ", which is what this engine serves");
  }
  if (options.max_waiting < 0) {
    return error(ErrorCode::kInvalidArgument, "max_waiting is ", options.max_waiting, ", expected 0 or more");
  }
  if (options.max_cache_bytes.value_or(0) < 0) {
    return error(ErrorCode::kInvalidArgument, "max_cache_bytes is ", *options.max_cache_bytes, ", expected 0 or more");
  }
  if (!(options.prefill_share > 0 && options.prefill_share < 1)) {
    return error(ErrorCode::kInvalidArgument, "prefill_share is ", options.prefill_share,
                 ", expected a number between 0 and 1");
  }
  return success();
}

/// A thread that takes no signals, so that they reach the program's own threads, but those of its own faults: where
/// such a one is blocked no handler is called, and mapped weights have one (mapped_file.h).
template <class Run>
Expected<std::thread> thread_without_signals(Run&& run) {
  sigset_t all, before;
  sigfillset(&all);
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Expected<std::thread> made = error(ErrorCode::kOutOfMemory, "the system gives this process no further thread");
  try {
    made = std::thread(std::forward<Run>(run));
  } catch (const std::system_error&) {
    // What `made` says.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return made;
}

}  // namespace

Expected<std::shared_ptr<SchedulerThread>> SchedulerThread::create(std::shared_ptr<const ModelData> model,
                                                                   const SchedulerOptions& options) {
  const int64_t most = can_share_steps(*model) ? model->engine->limits().max_batch : kMostRunning;
  const int64_t max_running = options.max_running.value_or(std::min(kDefaultMaxRunning, most));
  SALA_RETURN_IF_ERROR(check(options, max_running, most));
  std::shared_ptr<SchedulerThread> made(new SchedulerThread(std::move(model), options, max_running));
  auto thread = thread_without_signals([runner = made.get()] { runner->run(); });
  if (!thread) return thread.error();
  made->thread_ = *std::move(thread);
  return made;
}

SchedulerThread::SchedulerThread(std::shared_ptr<const ModelData> model, const SchedulerOptions& options,
                                 int64_t max_running)
    : model_(std::move(model)), options_(options), max_running_(max_running), balance_(options.prefill_share) {}

void SchedulerThread::close(std::shared_ptr<SchedulerThread> thread) {
  SchedulerThread& closing = *thread;
  if (closing.is_in_child()) {
    closing.self_ = std::move(thread);
    return;
  }
  {
    const std::lock_guard lock(closing.mutex_);
    closing.is_closing_ = true;
    closing.work_.notify_all();
  }
  if (closing.is_this_thread()) {
    closing.thread_.detach();
    closing.self_ = std::move(thread);
  } else {
    closing.thread_.join();
  }
}

void SchedulerThread::let_go(std::shared_ptr<SchedulerThread> thread, std::unique_ptr<Request> request) {
  if (thread->is_in_child()) {
    thread->self_ = thread;
    static_cast<void>(request.release());
    return;
  }
  request->is_cancelled = true;
  if (!thread->is_this_thread()) {
    thread->wait(*request);
  } else if (request->stage != RequestStage::kEnded) {
    thread->orphans_.push_back(std::move(request));
  }
}

std::unique_lock<std::mutex> SchedulerThread::locked() {
  return is_in_child() ? std::unique_lock(mutex_, std::defer_lock) : std::unique_lock(mutex_);
}

Status SchedulerThread::submit(Request& request) {
  const auto lock = locked();
  if (!lock) {
    return error(ErrorCode::kEngineFailed,
                 "the scheduler belongs to the process that made it: load the model and make one in this process");
  }
  if (is_closing_) return error(ErrorCode::kBusy, "the scheduler is closing: make another");
  const auto is_of_session = [&](const Request* other) { return &other->session == &request.session; };
  if (std::ranges::any_of(waiting_, is_of_session) || std::ranges::any_of(running_, is_of_session)) {
    return error(ErrorCode::kInvalidArgument, "the session has a request already: wait for its end, or fork it");
  }
  const auto waiting = static_cast<int64_t>(waiting_.size()), running = static_cast<int64_t>(running_.size());
  const int64_t can_begin = is_short_of_memory_ && waiting > 0 ? 0 : max_running_ - running;
  if (waiting - options_.max_waiting >= can_begin) {
    return error(ErrorCode::kBusy, running, " requests run and ", waiting,
                 " wait, as many as max_running and max_waiting "
                 "allow: try again when some have ended");
  }
  // Behind those of the same priority.
  const auto place = std::ranges::find_if(
      waiting_, [&](const Request* other) { return other->options.priority < request.options.priority; });
  waiting_.insert(place, &request);
  work_.notify_all();
  return success();
}

Expected<std::optional<int32_t>> SchedulerThread::next(Request& request) {
  auto lock = locked();
  if (!lock) return error(ErrorCode::kEngineFailed, "the answer belongs to the process that asked for it");
  request.changed.wait(lock, [&] { return !request.tokens.empty() || request.stage == RequestStage::kEnded; });
  request.last_logprobs.reset();
  if (!request.tokens.empty()) {
    const int32_t token = request.tokens.front().token;
    request.last_logprobs = std::move(request.tokens.front().logprobs);
    request.tokens.pop_front();
    return std::optional(token);
  }
  if (request.thrown) std::rethrow_exception(request.thrown);
  if (!request.outcome) return request.outcome.error();
  return std::optional<int32_t>();
}

bool SchedulerThread::wait_for(Request& request, std::chrono::duration<double> time) {
  auto lock = locked();
  if (!lock) return true;
  // A clock of nanoseconds can add no more to its time. What is no number waits for none.
  const std::chrono::duration<double> most(time.count() > 0 ? std::min(time.count(), 1e9) : 0);
  return request.changed.wait_for(lock, most,
                                  [&] { return !request.tokens.empty() || request.stage == RequestStage::kEnded; });
}

void SchedulerThread::cancel(Request& request) { request.is_cancelled = true; }

void SchedulerThread::wait(Request& request) {
  if (is_this_thread()) return;  // which cannot wait for itself
  auto lock = locked();
  if (lock) request.changed.wait(lock, [&] { return request.stage == RequestStage::kEnded; });
}

RequestProgress SchedulerThread::progress(const Request& request) {
  const auto lock = locked();
  return {request.stage, request.prompt_tokens_done, static_cast<int64_t>(request.prompt.size()), request.new_tokens,
          static_cast<int64_t>(request.tokens.size())};
}

const TokenScores* SchedulerThread::prompt_scores(const Request& request) {
  const auto lock = locked();
  return request.prompt_scores ? &*request.prompt_scores : nullptr;
}

FinishReason SchedulerThread::finish_reason(const Request& request) {
  const auto lock = locked();
  return request.finish_reason;
}

void SchedulerThread::run() {
  id_ = std::this_thread::get_id();
  bool is_closing = false;
  while (!is_closing) {
    {
      std::unique_lock lock(mutex_);
      work_.wait(lock, [this] { return is_closing_ || !waiting_.empty() || !running_.empty(); });
      is_closing = is_closing_;
      if (is_closing) {
        for (Request* request : waiting_) request->is_cancelled = true;
        for (Request* request : running_) request->is_cancelled = true;
      }
    }
    end_cancelled();
    admit();
    end_late();
    take_turn();
  }
  batch_.reset();
  const std::shared_ptr<SchedulerThread> last = std::move(self_);
}

void SchedulerThread::end_cancelled() {
  std::vector<Request*> all;
  {
    const std::lock_guard lock(mutex_);
    all = waiting_;
    all.insert(all.end(), running_.begin(), running_.end());
  }
  for (Request* request : all) {
    if (request->is_cancelled) end(*request, success(), FinishReason::kCancelled);
  }
}

void SchedulerThread::end_late() {
  std::vector<Request*> late;
  {
    const std::lock_guard lock(mutex_);
    std::ranges::copy_if(waiting_, std::back_inserter(late), [](const Request* request) {
      return request->options.max_wait && seconds_since(request->arrival) > *request->options.max_wait;
    });
  }
  for (Request* request : late) {
    end(*request,
        error(ErrorCode::kBusy, "the request has waited for longer than max_wait, ", *request->options.max_wait,
              " s: try again later"),
        FinishReason::kNone);
  }
}

void SchedulerThread::admit() {
  while (static_cast<int64_t>(running_.size()) < max_running_) {
    Request* first = nullptr;
    {
      const std::lock_guard lock(mutex_);
      is_short_of_memory_ = false;
      if (waiting_.empty()) return;
      first = waiting_.front();
    }
    const auto admitted = admission(*first);
    if (!admitted) {
      const std::lock_guard lock(mutex_);
      is_short_of_memory_ = true;
      return;
    }
    Status begun = *admitted;
    if (begun) begun = outcome_of(*first, [&] { return begin(*first); });
    if (!begun) end(*first, std::move(begun), FinishReason::kNone);
  }
}

Status SchedulerThread::begin(Request& request) {
  {
    const std::lock_guard lock(mutex_);
    std::erase(waiting_, &request);
    running_.push_back(&request);
    request.stage = RequestStage::kPrefill;
  }
  tell(request);
  request.can_share_steps = static_cast<bool>(BatchSlots::check(*model_, request.session));
  if (const auto top = request.options.prompt_logprobs) request.scorer.emplace(request.prompt, *top);
  if (request.prompt.empty()) {
    begin_answer(request);
    return success();
  }
  PrefillOptions options;
  options.context_length = request.session.position() + static_cast<int64_t>(request.prompt.size());
  options.on_progress = [this, &request](const PrefillProgress& progress) {
    {
      const std::lock_guard lock(mutex_);
      request.prompt_tokens_done = progress.tokens_done;
    }
    tell(request);
    return !request.scorer || request.scorer->outcome();
  };
  auto made = Prefiller::create(request.session, std::move(options), static_cast<int64_t>(request.prompt.size()));
  if (!made) return made.error();
  request.prefiller.emplace(*std::move(made));
  request.prefiller->checkpoints_.assign(request.options.checkpoints.rbegin(), request.options.checkpoints.rend());
  if (request.scorer) return request.scorer->begin(request.session, request.prefiller->options_);
  return success();
}

void SchedulerThread::take_turn() {
  const bool has_prompts =
      std::ranges::any_of(running_, [](const Request* each) { return each->prefiller.has_value(); });
  const bool has_answers = std::ranges::any_of(running_, [](const Request* each) { return each->member.has_value(); });
  if (!has_prompts || !has_answers) balance_.settle();
  const auto start = Clock::now();
  if (has_prompts && (!has_answers || balance_.is_for_prefill())) {
    take_prompt_turn();
    balance_.spend_on_prefill(seconds_since(start));
  } else if (has_answers) {
    take_answer_turn();
    balance_.spend_on_answers(seconds_since(start));
  }
}

void SchedulerThread::take_prompt_turn() {
  Request* chosen = nullptr;
  for (Request* each : running_) {
    if (!each->prefiller) continue;
    const auto rank = [](const Request& request) {
      return std::pair(-int64_t{request.options.priority}, request.last_turn);
    };
    if (chosen == nullptr || rank(*each) < rank(*chosen)) chosen = each;
  }
  chosen->last_turn = ++turns_;
  Status outcome = outcome_of(*chosen, [&] { return read_on(*chosen); });
  if (!outcome) return end(*chosen, std::move(outcome), FinishReason::kNone);
  if (chosen->prefiller) return;
  step_alone(*chosen);
  settle(*chosen);
}

Status SchedulerThread::read_on(Request& request) {
  const auto is_read = read_chunk(request);
  if (request.scorer) SALA_RETURN_IF_ERROR(request.scorer->outcome());  // which is why the prefill has stopped
  if (!is_read) return is_read.error();
  if (!*is_read) return success();
  request.prefiller.reset();
  begin_answer(request);
  return success();
}

Expected<bool> SchedulerThread::read_chunk(Request& request) {
  const int64_t before = request.session.past_length();
  const auto rest = std::span(request.prompt).subspan(request.tokens_fed);
  // Together with what waits for a full step, no more than one: a turn is not longer than that.
  const int64_t waiting = request.prefiller->length() - before;
  const int64_t room = std::max<int64_t>(request.session.chunk_tokens() - waiting, 1);
  const auto piece = rest.first(std::min(rest.size(), static_cast<size_t>(room)));
  SALA_RETURN_IF_ERROR(request.prefiller->feed(piece));
  request.tokens_fed += piece.size();
  // What has filled no chunk waits for the end.
  if (piece.size() < rest.size() || request.session.past_length() != before) return false;
  if (const auto logits = request.prefiller->finish(); !logits) return logits.error();
  return true;
}

void SchedulerThread::begin_answer(Request& request) {
  request.member.emplace(Generation(request.session, request.options.generate));
  {
    const std::lock_guard lock(mutex_);
    if (request.scorer) request.prompt_scores = request.scorer->take();
    request.stage = RequestStage::kGenerate;
  }
  request.scorer.reset();
  tell(request);
}

void SchedulerThread::settle(Request& request) {
  BatchMember& member = *request.member;
  if (member.is_active) return deliver(request, *member.token);
  end(request, member.outcome, member.generation.finish_reason());
}

void SchedulerThread::deliver(Request& request, int32_t token) {
  bool goes_on = true;
  const Status told = outcome_of(request, [&] {
    if (request.options.on_token) goes_on = request.options.on_token(token);
    return success();
  });
  const TokenLogprobs* drawn = request.member->generation.logprobs();
  std::optional<TokenLogprobs> logprobs = drawn == nullptr ? std::nullopt : std::optional(*drawn);
  {
    const std::lock_guard lock(mutex_);
    request.tokens.push_back({token, std::move(logprobs)});
    ++request.new_tokens;
    request.changed.notify_all();
  }
  tell(request);
  if (!told || !goes_on) end(request, told, FinishReason::kCancelled);
}

void SchedulerThread::tell(const Request& request) {
  if (request.on_change) request.on_change();
}

void SchedulerThread::end(Request& request, Status outcome, FinishReason reason) {
  if (request.is_in_batch) {
    // One that is not active has left.
    if (request.member->is_active) batch_->leave(*request.member, std::move(outcome));
    outcome = request.member->outcome;
  }
  request.prefiller.reset();
  request.scorer.reset();
  request.member.reset();
  {
    const std::lock_guard lock(mutex_);
    std::erase(waiting_, &request);
    std::erase(running_, &request);
  }
  if (request.options.on_end) request.options.on_end(outcome);
  const std::function<void()> on_change = std::move(request.on_change);
  std::unique_lock lock(mutex_);
  request.finish_reason = outcome ? reason : FinishReason::kNone;
  request.outcome = std::move(outcome);
  request.stage = RequestStage::kEnded;
  request.changed.notify_all();
  lock.unlock();
  if (on_change) on_change();
  const auto orphan = std::ranges::find(orphans_, &request, &std::unique_ptr<Request>::get);
  if (orphan == orphans_.end()) return;
  const std::unique_ptr<Request> last = std::move(*orphan);  // what goes with it may let go of others
  orphans_.erase(orphan);
}

}  // namespace sala
