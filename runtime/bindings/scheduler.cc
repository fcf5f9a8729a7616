#include "scheduler.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "arrays.h"
#include "constraint.h"
#include "prefill.h"
#include "py_session.h"
#include "sala/model.h"
#include "sala/scheduler.h"
#include "wakeup.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace sala::python {

namespace {

using Seconds = std::chrono::duration<double>;

/// How often a thread that waits looks for signals, Ctrl-C for example.
constexpr Seconds kBetweenSignals(0.1);

/// What Python raised in the scheduler's thread, and what is kept there: it must not travel through the core.
struct Raised {};

/// What the scheduler's thread has from Python and leaves for it. The last who holds it may be that thread.
struct Exchange {
  nb::object session;
  nb::object on_token;
  nb::object cause;                        // of the error that ended the answer
  std::optional<nb::python_error> raised;  // by on_token

  Exchange(nb::object used, nb::object told) : session(std::move(used)), on_token(std::move(told)) {}
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  ~Exchange() {
    const Locked locked;
    for (nb::object* each : {&session, &on_token, &cause}) each->reset();
    raised.reset();
  }

  bool tell(int32_t token) {
    const Locked locked;
    try {
      return until_the_interpreter_ends([&] { return nb::cast<bool>(on_token(token)); });
    } catch (nb::python_error& error) {
      raised.emplace(std::move(error));
      throw Raised();
    }
  }

  [[noreturn]] void rethrow() {
    nb::python_error error = std::move(*raised);
    raised.reset();
    throw error;
  }

  void keep_cause(const Error& error) {
    if (!has_cause(error)) return;  // nor a need for the lock
    const Locked locked;
    cause = take_cause(error);
  }
};

/// What an answer counts and its scheduler's event loop is woken by. The scheduler's thread needs no lock for it, and
/// may be the last who holds it.
struct Changes {
  explicit Changes(std::shared_ptr<const Wakeup> of_scheduler) : wakeup(std::move(of_scheduler)) {}

  std::shared_ptr<const Wakeup> wakeup;
  std::atomic<uint64_t> count = 0;
};

/// An answer, whose session is busy until it has ended.
class PyAnswer {
 public:
  PyAnswer(Scheduler& scheduler, std::shared_ptr<const Wakeup> wakeup, nb::object session, const TokenArray& prompt,
           RequestOptions options, nb::object on_token)
      : exchange_(std::make_shared<Exchange>(std::move(session), std::move(on_token))),
        changes_(std::make_shared<Changes>(std::move(wakeup))),
        constraint_(options.generate.constraint),
        prompt_logprobs_(options.prompt_logprobs) {
    PySession& used = nb::cast<PySession&>(exchange_->session);
    options.on_end = [busy = std::make_shared<Busy>(used), exchange = exchange_](const Status& outcome) mutable {
      if (!outcome) exchange->keep_cause(outcome.error());
      busy.reset();
    };
    if (!exchange_->on_token.is_none()) {
      options.on_token = [exchange = exchange_](int32_t token) { return exchange->tell(token); };
    }
    options.on_change = [changes = changes_] {
      ++changes->count;
      changes->wakeup->wake();
    };
    const auto ids = view(prompt);
    answer_.emplace(unwrap(scheduler.submit(used.session, {ids.begin(), ids.end()}, std::move(options))));
  }
  PyAnswer(const PyAnswer&) = delete;
  PyAnswer& operator=(const PyAnswer&) = delete;
  ~PyAnswer() {
    const Unlocked unlocked;
    answer_.reset();
  }

  /// The next token. Nothing when the answer has ended.
  std::optional<int32_t> next() {
    if (is_taken_) raise({ErrorCode::kInvalidArgument, "another thread takes from this answer: use one thread for it"});
    is_taken_ = true;
    struct Mark {
      bool& is_taken;
      ~Mark() { is_taken = false; }
    } const mark{is_taken_};
    while (!wait(kBetweenSignals.count())) continue;
    if (is_done_) return std::nullopt;  // its error has been raised
    try {
      const auto token = answer_->next();
      is_done_ = !token || !*token;
      if (!token) {
        rethrow_of(constraint_);
        raise(token.error(), std::exchange(exchange_->cause, nb::object()));
      }
      return *token;
    } catch (const Raised&) {
      is_done_ = true;
    }
    exchange_->rethrow();
  }

  /// Whether `next` has told of the end.
  bool is_done() const { return is_done_; }

  /// What `next` would give at once: a token, the end or an error. Nothing if it would wait.
  std::optional<std::string_view> ready() const {
    const RequestProgress now = answer_->progress();
    if (now.tokens_ready > 0) return "token";
    if (now.stage != RequestStage::kEnded) return std::nullopt;
    return answer_->finish_reason() == FinishReason::kNone ? "error" : "end";
  }

  ToldLogprobs logprobs() const { return told(answer_->logprobs()); }

  /// The arrays of the prompt's scores. None before there are any, and if they were not asked for.
  nb::object prompt_scores() const {
    const TokenScores* scores = answer_->prompt_scores();
    return scores == nullptr ? nb::none() : nb::object(arrays_of(*scores, *prompt_logprobs_));
  }

  uint64_t changes() const { return changes_->count; }

  /// Waits so many seconds. True once `next` would not wait.
  bool wait(double seconds) {
    const auto end = std::chrono::steady_clock::now() + Seconds(seconds);
    bool is_there = false;
    for (Seconds left(seconds); !is_there; left = end - std::chrono::steady_clock::now()) {
      {
        const Unlocked unlocked;
        is_there = answer_->wait_for(std::clamp(left, Seconds(0), kBetweenSignals));
      }
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      if (left <= kBetweenSignals) break;
    }
    return is_there;
  }

  void cancel() { answer_->cancel(); }

  /// Cancels the request and waits until its session is free.
  void close() {
    const Unlocked unlocked;
    answer_->cancel();
    answer_->wait();
  }

  std::optional<std::string_view> finish_reason() const { return told(answer_->finish_reason()); }

  std::tuple<std::string_view, int64_t, int64_t, int64_t> progress() const {
    const RequestProgress now = answer_->progress();
    return {name_of(now.stage), now.prompt_tokens_done, now.prompt_tokens, now.new_tokens};
  }

 private:
  std::shared_ptr<Exchange> exchange_;
  std::shared_ptr<Changes> changes_;
  std::shared_ptr<TokenConstraint> constraint_;
  std::optional<int64_t> prompt_logprobs_;
  std::optional<Answer> answer_;
  // Read and written with the interpreter's lock:
  bool is_taken_ = false;
  bool is_done_ = false;
};

class PyScheduler {
 public:
  PyScheduler(const Model& model, std::optional<int64_t> max_running, int64_t max_waiting,
              std::optional<int64_t> max_cache_bytes, double prefill_share)
      : scheduler_(unwrap(Scheduler::create(model, {max_running, max_waiting, max_cache_bytes, prefill_share}))) {}
  PyScheduler(const PyScheduler&) = delete;
  PyScheduler& operator=(const PyScheduler&) = delete;
  ~PyScheduler() { close(); }

  PyAnswer* submit(nb::object session, const TokenArray& prompt, const GenerateOptions& options, int32_t priority,
                   std::optional<double> max_wait, std::vector<int64_t> checkpoints,
                   std::optional<int64_t> prompt_logprobs, nb::object on_token) {
    if (!scheduler_) raise({ErrorCode::kInvalidArgument, "the scheduler is closed: make another"});
    RequestOptions request;
    request.generate = options;
    request.priority = priority;
    request.max_wait = max_wait;
    request.checkpoints = std::move(checkpoints);
    request.prompt_logprobs = prompt_logprobs;
    return new PyAnswer(*scheduler_, wakeup_, std::move(session), prompt, std::move(request), std::move(on_token));
  }

  int descriptor() const { return wakeup_->descriptor(); }

  void close() {
    // Who submits meanwhile finds it closed.
    std::optional<Scheduler> closing;
    closing.swap(scheduler_);
    const Unlocked unlocked;
    closing.reset();
  }

 private:
  const std::shared_ptr<const Wakeup> wakeup_ = std::make_shared<const Wakeup>();
  std::optional<Scheduler> scheduler_;
};

}  // namespace

void bind_scheduler(nb::module_& module) {
  nb::class_<PyAnswer>(module, "Answer")
      .def("next", &PyAnswer::next)
      .def("wait", &PyAnswer::wait, "seconds"_a)
      .def("cancel", &PyAnswer::cancel)
      .def("close", &PyAnswer::close)
      .def_prop_ro("is_done", &PyAnswer::is_done)
      .def_prop_ro("ready", &PyAnswer::ready)
      .def_prop_ro("logprobs", &PyAnswer::logprobs)
      .def_prop_ro("prompt_scores", &PyAnswer::prompt_scores)
      .def_prop_ro("changes", &PyAnswer::changes)
      .def_prop_ro("finish_reason", &PyAnswer::finish_reason)
      .def_prop_ro("progress", &PyAnswer::progress);

  nb::class_<PyScheduler>(module, "Scheduler")
      .def(nb::init<const Model&, std::optional<int64_t>, int64_t, std::optional<int64_t>, double>(), "model"_a,
           nb::kw_only(), "max_running"_a.none(), "max_waiting"_a, "max_cache_bytes"_a.none(), "prefill_share"_a)
      .def("submit", &PyScheduler::submit, "session"_a, "prompt"_a, "options"_a, nb::kw_only(), "priority"_a,
           "max_wait"_a.none(), "checkpoints"_a, "prompt_logprobs"_a.none(), "on_token"_a.none())
      .def_prop_ro("descriptor", &PyScheduler::descriptor)
      .def("close", &PyScheduler::close);
}

}  // namespace sala::python
