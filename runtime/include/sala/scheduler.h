// Requests of many users on one model: prompts are read and answers drawn side by side, by a thread of its own.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "sala/model.h"
#include "sala/session.h"
#include "sala/status.h"

namespace sala {

class SchedulerThread;
struct Request;

struct SchedulerOptions {
  /// Requests that run at once, each with its prompt or its answer. The others wait. By default 8, or as many as a step
  /// of the engine serves if these are fewer and more than one.
  std::optional<int64_t> max_running = {};
  /// Requests that may wait. One more is refused (kBusy).
  int64_t max_waiting = 256;
  /// Bytes that the caches of all sessions of the model may take, those that the scheduler does not run included. By
  /// default as many as the engine's memory has, if it tells.
  std::optional<int64_t> max_cache_bytes = {};
  /// Share of the time that goes to prompts while answers are being drawn, more than 0 and less than 1.
  double prefill_share = 0.5;
};

struct RequestOptions {
  GenerateOptions generate;
  /// Requests of a larger number begin first, and read their prompts first.
  int32_t priority = 0;
  /// Seconds that the request may wait. After that it ends (kBusy). By default it waits for as long as it takes.
  std::optional<double> max_wait = {};
  /// Called with each token before the next step. Return false to end the answer behind it. It runs in the scheduler's
  /// thread, and all requests wait for it. It must not wait for an answer. What it throws, `Answer::next` throws.
  std::function<bool(int32_t token)> on_token = {};
  /// Called in the scheduler's thread when the session is free again, with the error that ended the answer, if one did.
  /// It must not throw, nor wait for an answer.
  std::function<void(const Status& outcome)> on_end = {};
  /// Called in the scheduler's thread behind each change that `Answer::progress` or `Answer::wait_for` shows: the
  /// request has begun, its prompt has moved on, a token can be taken, or it has ended. Whoever asks after a call finds
  /// the change. It must not throw, nor wait. Behind the end it is called once more, when the answer may be gone
  /// already, so what it uses must not depend on the answer.
  std::function<void()> on_change = {};
  /// Positions of the context that lie within the prompt, in rising order. A checkpoint is kept at each, as where a
  /// prompt ends. The prompt's tokens run in steps that end there, which changes sums by no more than rounding does.
  std::vector<int64_t> checkpoints = {};
  /// Tell how probable the model finds each token of the prompt, as `Session::score` does, with the so many likeliest
  /// tokens at each place, 0 to kMostLogprobs: see `Answer::prompt_scores`. By default nothing is told, and the prompt
  /// takes fewer steps.
  std::optional<int64_t> prompt_logprobs = {};
};

enum class RequestStage { kWaiting, kPrefill, kGenerate, kEnded };

/// `waiting`, `prefill`, `generate` or `ended`.
std::string_view name_of(RequestStage stage);

struct RequestProgress {
  RequestStage stage;
  int64_t prompt_tokens_done;
  int64_t prompt_tokens;
  int64_t new_tokens;    // stop tokens are not counted
  int64_t tokens_ready;  // that `Answer::next` gives without waiting
};

/// The answer to one request. Any thread may use it, one at a time except `cancel` and `progress`.
class Answer {
 public:
  Answer(Answer&&) noexcept;
  Answer& operator=(Answer&&) noexcept;
  /// Cancels the request, and waits until its session is free. In the scheduler's own thread it cannot wait: then the
  /// session must live until `RequestOptions::on_end` has been called.
  ~Answer();

  /// Waits for the next token. Nothing when the answer has ended: the session is free then. Tokens that were drawn
  /// before an error come before it.
  Expected<std::optional<int32_t>> next();
  /// Waits at most so long, and at most 1e9 seconds. True if `next` would not wait.
  bool wait_for(std::chrono::duration<double> time) const;

  /// Waits for the end, and takes no token.
  void wait() const;

  /// Ends the request, when the step that runs has ended. The session keeps what it has read and drawn.
  void cancel() noexcept;

  /// Those of the token that `next` returned last, valid until the next call of it. Null if it returned none, or if
  /// they were not asked for.
  const TokenLogprobs* logprobs() const;

  /// How probable the model found each token of the prompt, valid as long as this is. Null before all of it has been
  /// read, and if it was not asked for.
  const TokenScores* prompt_scores() const;

  /// The reason why `next` returned nothing. kNone before, and after an error.
  FinishReason finish_reason() const;
  RequestProgress progress() const;

 private:
  friend class Scheduler;
  Answer(std::shared_ptr<SchedulerThread> thread, std::unique_ptr<Request> request);
  std::shared_ptr<SchedulerThread> thread_;
  std::unique_ptr<Request> request_;
};

/// Runs requests, each on a session of its own.
///
/// Prompts run chunk by chunk, and between the chunks the answers are drawn, one step of the engine for all of them. A
/// session gives the tokens that it gives alone, whatever runs beside it, but for the rounding of sums.
///
/// * **Who begins.** While fewer than `max_running` run, the waiting request of the highest priority, the oldest of
///   these. It begins when there is memory for its prompt and its longest answer beside what those that run may still
///   take. Until then it waits, and nobody overtakes it. If nothing runs that could give memory back, it ends
///   (kOutOfMemory). What has begun goes on, whoever comes later.
/// * **Whose turn it is.** Prompts get `prefill_share` of the time and answers the rest. Of the prompts, the highest
///   priority, and among equal ones each a chunk in turn. A smaller `SessionOptions::chunk_tokens` makes turns shorter.
/// * **Who shares a step.** Sessions of the same `max_context`, where `EngineLimits::max_batch` allows, memory grows by
///   pages, and there is memory for the batch: a Lightning state for each of `max_running`, which is kept from the
///   first shared step until the scheduler ends. Others take a step each.
/// * **Failures.** An error ends the answers that it concerns. If a step of several sessions fails (kEngineFailed), it
///   poisons all of them.
class Scheduler {
 public:
  /// kInvalidArgument for an option out of its range.
  static Expected<Scheduler> create(const Model& model, SchedulerOptions options = {});
  Scheduler(Scheduler&&) noexcept;
  Scheduler& operator=(Scheduler&&) noexcept;
  /// Cancels all requests and waits for the step that runs.
  ~Scheduler();

  /// Appends a prompt to a session and draws an answer. The prompt may be empty if the session has a context.
  ///
  /// Nobody may use the session before its answer has ended, except `Session::stop`. You may move it, and it must
  /// outlive the answer. A request is refused at once for what `Session::prefill` and `Session::generate` refuse, and
  /// with kBusy if too many wait. It works on the process that made the scheduler, not in a child (kEngineFailed).
  Expected<Answer> submit(Session& session, std::vector<int32_t> prompt, RequestOptions options = {});

 private:
  explicit Scheduler(std::shared_ptr<SchedulerThread> thread);
  std::shared_ptr<SchedulerThread> thread_;
};

}  // namespace sala
