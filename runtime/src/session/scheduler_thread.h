// The thread that runs requests, and what it shares with those who wait for their answers.

#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "sala/prefiller.h"
#include "sala/scheduler.h"
#include "session/decode_batch.h"
#include "session/model_data.h"
#include "session/session_core.h"
#include "session/text_scorer.h"
#include "session/turn_balance.h"

namespace sala {

/// One request. Its answer owns it, and lives until it has ended.
struct Request {
  Request(SessionCore& used, std::vector<int32_t> given, RequestOptions chosen)
      : session(used), prompt(std::move(given)), on_change(std::move(chosen.on_change)), options(std::move(chosen)) {}

  /// Bytes of caches that it may still take.
  int64_t bytes_to_come() const {
    const int64_t tokens = last_length - session.past_length();
    const int64_t of_drafts = options.generate.speculation ? session.bytes_for_drafts() : 0;
    return (tokens > 0 ? session.bytes_for(tokens) : 0) + of_drafts;
  }

  SessionCore& session;
  const std::vector<int32_t> prompt;
  std::function<void()> on_change;  // of the scheduler's thread, which keeps it behind the end of the request
  const RequestOptions options;     // without it
  const std::chrono::steady_clock::time_point arrival = std::chrono::steady_clock::now();
  int64_t last_length = 0;  // tokens that have run at its end, at most
  std::atomic<bool> is_cancelled = false;

  // Of the scheduler's thread.
  std::optional<TextScorer> scorer;    // if the prompt's log-probabilities were asked for, until it has run
  std::optional<Prefiller> prefiller;  // until the prompt has run
  size_t tokens_fed = 0;
  uint64_t last_turn = 0;             // of its prompt
  std::optional<BatchMember> member;  // from then on
  bool can_share_steps = false;
  bool is_in_batch = false;
  std::exception_ptr thrown;

  // Of who takes the tokens.
  std::optional<TokenLogprobs> last_logprobs;

  // Under the mutex.
  RequestStage stage = RequestStage::kWaiting;
  struct Drawn {
    int32_t token;
    std::optional<TokenLogprobs> logprobs;
  };
  std::deque<Drawn> tokens;  // that nobody has taken yet
  int64_t prompt_tokens_done = 0;
  std::optional<TokenScores> prompt_scores;  // stay as they are, once they are there
  int64_t new_tokens = 0;
  Status outcome = success();
  FinishReason finish_reason = FinishReason::kNone;
  std::condition_variable changed;
};

/// What `work` returns. What it throws is for whoever waits for the answer.
template <class Work>
Status outcome_of(Request& request, Work&& work) {
  try {
    return work();
  } catch (...) {
    request.thrown = std::current_exception();
    return error(ErrorCode::kEngineFailed, "an exception ended the answer");
  }
}

class SchedulerThread {
 public:
  static Expected<std::shared_ptr<SchedulerThread>> create(std::shared_ptr<const ModelData> model,
                                                           const SchedulerOptions& options);

  const ModelData& model() const { return *model_; }

  /// Lets a request wait for its turn.
  Status submit(Request& request);
  /// Ends all requests and the thread.
  ///
  /// This and `let_go` may be called from anywhere, also where nobody thinks of it: the scheduler's own thread can run
  /// a garbage collector of the caller's language. There they cannot wait. In a child that `fork` made nothing can be
  /// destroyed on which the parent's threads wait, so it stays.
  static void close(std::shared_ptr<SchedulerThread> thread);
  /// Cancels a request, and frees it when it has ended.
  static void let_go(std::shared_ptr<SchedulerThread> thread, std::unique_ptr<Request> request);

  Expected<std::optional<int32_t>> next(Request& request);
  bool wait_for(Request& request, std::chrono::duration<double> time);
  void cancel(Request& request);
  /// Waits until it has ended.
  void wait(Request& request);
  RequestProgress progress(const Request& request);
  const TokenScores* prompt_scores(const Request& request);
  FinishReason finish_reason(const Request& request);

 private:
  SchedulerThread(std::shared_ptr<const ModelData> model, const SchedulerOptions& options, int64_t max_running);

  /// Not locked in a child that `fork` made: the thread is not there, nor whoever would unlock.
  std::unique_lock<std::mutex> locked();
  bool is_in_child() const { return getpid() != process_; }
  bool is_this_thread() const { return std::this_thread::get_id() == id_.load(); }

  void run();
  void end_cancelled();
  void end_late();
  /// Begins those that wait, as far as there is room.
  void admit();
  /// Nothing if the request has to wait. Otherwise it may begin, or must end with an error.
  std::optional<Status> admission(const Request& request) const;
  /// Bytes that the slots of a batch will take when two of these draw together.
  int64_t bytes_of_slots(const SessionCore& like) const;
  Status begin(Request& request);
  /// One chunk of a prompt, or one step of all answers.
  void take_turn();
  void take_prompt_turn();
  void take_answer_turn();

  Status read_on(Request& request);
  /// Reads the next chunk of a prompt. True if that was all of it.
  static Expected<bool> read_chunk(Request& request);
  void begin_answer(Request& request);
  /// Whether an answer takes its next step alone. What that throws ends it.
  bool wants_own_step(Request& request);
  /// Takes those from the batch whose next step has drafts.
  void separate(std::span<Request* const> answering);
  /// Brings those together that can share steps.
  void gather(std::span<Request* const> answering);
  Status join(Request& request);
  void step_together();
  void step_alone(Request& request);
  /// Hands out the token that was drawn, or ends the answer.
  void settle(Request& request);
  void deliver(Request& request, int32_t token);
  /// Tells of a change, which others see by now. Without the mutex: whoever hears of it may ask at once.
  static void tell(const Request& request);
  /// After this the request may be gone.
  void end(Request& request, Status outcome, FinishReason reason);

  const std::shared_ptr<const ModelData> model_;
  const SchedulerOptions options_;
  const int64_t max_running_;
  const pid_t process_ = getpid();

  // Of the thread.
  TurnBalance balance_;
  std::unique_ptr<DecodeBatch> batch_;
  uint64_t turns_ = 0;
  std::vector<std::unique_ptr<Request>> orphans_;  // let go in this thread, and not ended yet
  std::shared_ptr<SchedulerThread> self_;          // where it was closed and cannot be destroyed yet

  std::mutex mutex_;
  std::condition_variable work_;
  std::vector<Request*> waiting_;    // in the order in which they begin
  std::vector<Request*> running_;    // changed by the thread alone
  bool is_short_of_memory_ = false;  // so that the first of them must wait
  bool is_closing_ = false;
  std::thread thread_;
  std::atomic<std::thread::id> id_;  // of the thread, also when it has been detached
};

}  // namespace sala
