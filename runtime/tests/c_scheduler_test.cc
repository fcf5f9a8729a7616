// The scheduler of the C interface on the mock engine: what it answers and refuses, and who may outlive whom.

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "c_api/handles.h"
#include "c_errors.h"
#include "memory/paged_memory.h"
#include "mock_engine.h"
#include "sala.h"

namespace sala::test {
namespace {

/// Holds the scheduler's thread at the first token of a request until it is opened.
class Gate {
 public:
  static int32_t pass(int32_t, void* gate) {
    auto& self = *static_cast<Gate*>(gate);
    std::unique_lock lock(self.mutex_);
    self.is_reached_ = true;
    self.changed_.notify_all();
    self.changed_.wait(lock, [&] { return self.is_open_; });
    return 1;
  }
  void wait_until_reached() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return is_reached_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_reached_ = false, is_open_ = false;
};

struct Ended {
  std::vector<int32_t> tokens;
  int32_t finish = SALA_FINISH_NONE, code = 0;
};

class CScheduler : public testing::Test {
 protected:
  CScheduler() {
    mock_.engine->paged_memory_ = paged_host_memory();
    model_ = std::make_unique<sala_model>(mock_.model);
    generate_.max_new_tokens = 12;
    generate_.stop_tokens = &no_token_;
    request_.generate = &generate_;
    session_ = session();
  }
  ~CScheduler() override {
    gate_.open();
    sala_scheduler_destroy(scheduler_);
    sala_session_destroy(session_);
  }

  sala_session* session(int64_t max_context = 400) const {
    sala_session_options options = SALA_SESSION_OPTIONS_INIT;
    options.max_context = max_context;
    options.chunk_tokens = 16;
    sala_session* made = nullptr;
    EXPECT_EQ(code_of(sala_session_create(model_.get(), &options, &made)), 0);
    return made;
  }
  void create(const sala_scheduler_options* options = nullptr) {
    ASSERT_EQ(code_of(sala_scheduler_create(model_.get(), options, &scheduler_)), 0);
  }
  /// A scheduler that runs one request at a time.
  void create_for_one(int64_t max_waiting = 0) {
    sala_scheduler_options options = SALA_SCHEDULER_OPTIONS_INIT;
    options.max_running = 1;
    options.max_waiting = max_waiting;
    create(&options);
  }
  /// The answer, or NULL and the code of the error.
  std::pair<sala_answer*, int32_t> try_submit(sala_session* session, const std::vector<int32_t>& ids) {
    sala_answer* answer = nullptr;
    sala_error* error = sala_scheduler_submit(scheduler_, session, ids.data(), ids.size(), &request_, &answer);
    return {answer, code_of(error)};
  }
  sala_answer* submit(sala_session* session, const std::vector<int32_t>& ids = prompt(20)) {
    const auto [answer, code] = try_submit(session, ids);
    EXPECT_EQ(code, 0);
    return answer;
  }
  /// Submits with a callback that holds the scheduler's thread at the first token.
  sala_answer* submit_held(sala_session* session) {
    request_.on_token = Gate::pass;
    request_.user_data = &gate_;
    sala_answer* answer = submit(session);
    request_.on_token = nullptr;
    gate_.wait_until_reached();
    return answer;
  }
  static Ended take_all(sala_answer* answer) {
    Ended result;
    int32_t token = -1;
    while (result.finish == SALA_FINISH_NONE && result.code == 0) {
      result.code = code_of(sala_answer_next(answer, &token, &result.finish));
      if (result.code == 0 && result.finish == SALA_FINISH_NONE) result.tokens.push_back(token);
    }
    return result;
  }
  static Ended end(sala_answer* answer) {
    const Ended result = take_all(answer);
    sala_answer_destroy(answer);
    return result;
  }
  static sala_request_progress progress(const sala_answer* answer) {
    sala_request_progress result = SALA_REQUEST_PROGRESS_INIT;
    EXPECT_EQ(code_of(sala_answer_progress(answer, &result)), 0);
    return result;
  }
  static bool is_busy(sala_session* session) {
    sala_session* fork = nullptr;
    const int32_t code = code_of(sala_session_fork(session, &fork));
    sala_session_destroy(fork);
    return code == SALA_ERROR_INVALID_ARGUMENT;
  }

  Mock mock_;
  std::unique_ptr<sala_model> model_;
  const int32_t no_token_ = 0;
  sala_generate_options generate_ = SALA_GENERATE_OPTIONS_INIT;
  sala_request_options request_ = SALA_REQUEST_OPTIONS_INIT;
  Gate gate_;
  sala_scheduler* scheduler_ = nullptr;
  sala_session* session_ = nullptr;
};

TEST_F(CScheduler, AnswersAreThoseOfEachSessionAlone) {
  create();
  sala_sampling_options sampling = SALA_SAMPLING_OPTIONS_INIT;
  sampling.temperature = 300;
  request_.sampling = &sampling;
  const std::vector<int64_t> lengths{20, 1, 77, 300, 45};
  std::vector<sala_session*> sessions;
  std::vector<sala_answer*> answers;
  for (size_t i = 0; i < lengths.size(); ++i) {
    sampling.seed = i;
    generate_.max_new_tokens = 5 + 9 * static_cast<int64_t>(i);
    sessions.push_back(session());
    answers.push_back(submit(sessions.back(), prompt(lengths[i])));
  }
  const Mock other;
  for (size_t i = 0; i < lengths.size(); ++i) {
    Session alone = other.session(400, 16);
    ASSERT_TRUE(alone.prefill(prompt(lengths[i])));
    SamplingOptions same;
    same.temperature = 300;
    same.seed = i;
    auto generation = alone.generate({5 + 9 * static_cast<int64_t>(i), same, std::vector<int32_t>()});
    std::vector<int32_t> expected;
    for (auto token = generation->next(); *token; token = generation->next()) expected.push_back(**token);
    const Ended found = end(answers[i]);
    EXPECT_EQ(found.tokens, expected);
    EXPECT_EQ(found.finish, SALA_FINISH_MAX_NEW_TOKENS);
    EXPECT_EQ(sala_session_position(sessions[i]), alone.position());
    sala_session_destroy(sessions[i]);
  }
}

TEST_F(CScheduler, SessionIsBusyUntilItsAnswerHasEnded) {
  create();
  sala_answer* answer = submit_held(session_);
  const int32_t id = 3;
  EXPECT_EQ(code_of(sala_session_decode(session_, id)), SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(code_of(sala_session_reset(session_)), SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(try_submit(session_, {id}).second, SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_TRUE(is_busy(session_));
  sala_session_stop(session_);
  gate_.open();
  EXPECT_EQ(take_all(answer).tokens.size(), 12u);
  EXPECT_FALSE(is_busy(session_));
  EXPECT_EQ(sala_session_position(session_), 32);
  EXPECT_EQ(end(submit(session_, {})).tokens.size(), 12u) << "an answer that goes on, without a prompt";
  sala_answer_destroy(answer);
}

TEST_F(CScheduler, CancelEndsAnAnswerAndKeepsWhatWasDrawn) {
  create();
  sala_answer* answer = submit_held(session_);
  sala_answer_cancel(answer);
  gate_.open();
  const Ended ended = take_all(answer);
  EXPECT_EQ(ended.tokens.size(), 1u);
  EXPECT_EQ(ended.finish, SALA_FINISH_CANCELLED);
  EXPECT_EQ(take_all(answer).finish, SALA_FINISH_CANCELLED) << "again";
  EXPECT_EQ(sala_session_position(session_), 21);
  sala_answer_destroy(answer);
}

TEST_F(CScheduler, CallbackEndsAnAnswerBehindItsToken) {
  create();
  std::vector<int32_t> told;
  request_.user_data = &told;
  request_.on_token = [](int32_t token, void* data) {
    auto& tokens = *static_cast<std::vector<int32_t>*>(data);
    tokens.push_back(token);
    return tokens.size() < 3 ? 1 : 0;
  };
  const Ended ended = end(submit(session_));
  EXPECT_EQ(ended.tokens, told);
  EXPECT_EQ(told.size(), 3u);
  EXPECT_EQ(ended.finish, SALA_FINISH_CANCELLED);
}

TEST_F(CScheduler, ExceptionOfTheCallbackEndsItsAnswerAlone) {
  create();
  request_.on_token = [](int32_t, void*) -> int32_t { throw std::runtime_error("from outside"); };
  sala_answer* answer = submit(session_);
  request_.on_token = nullptr;
  sala_session* other = session();
  EXPECT_EQ(end(submit(other)).tokens.size(), 12u);
  int32_t token = -1, finish = 7;
  EXPECT_EQ(code_of(sala_answer_next(answer, &token, &finish)), 0);
  finish = 7;
  sala_error* error = sala_answer_next(answer, &token, &finish);
  EXPECT_EQ(sala_error_code(error), SALA_ERROR_INTERNAL);
  EXPECT_EQ(message_of(error), "from outside");
  EXPECT_EQ(finish, 7) << "outputs stay as they were";
  EXPECT_FALSE(is_busy(session_));
  sala_answer_destroy(answer);
  sala_session_destroy(other);
}

TEST_F(CScheduler, FinishSaysWhyAnAnswerEnded) {
  create();
  generate_.max_new_tokens = 2;
  Ended ended = end(submit(session_));
  EXPECT_EQ(ended.finish, SALA_FINISH_MAX_NEW_TOKENS);
  generate_.stop_tokens = &ended.tokens[1];
  generate_.stop_token_count = 1;
  sala_session* other = session();
  ended = end(submit(other));
  EXPECT_EQ(ended.finish, SALA_FINISH_STOP_TOKEN);
  EXPECT_EQ(ended.tokens.size(), 1u);
  sala_session_destroy(other);
  other = session(22);
  generate_.max_new_tokens = 12;
  generate_.stop_token_count = 0;
  ended = end(submit(other));
  EXPECT_EQ(ended.finish, SALA_FINISH_MAX_CONTEXT);
  EXPECT_EQ(ended.tokens.size(), 2u);
  sala_session_destroy(other);
}

TEST_F(CScheduler, FailedStepEndsItsAnswerAndPoisonsTheSession) {
  create();
  mock_.engine->log_->fail_at = mock_.steps().size() + 4;  // two chunks, two tokens
  const Ended ended = end(submit(session_));
  EXPECT_EQ(ended.code, SALA_ERROR_ENGINE_FAILED);
  EXPECT_FALSE(ended.tokens.empty());
  EXPECT_EQ(code_of(sala_session_decode(session_, 3)), SALA_ERROR_SESSION_POISONED);
  EXPECT_EQ(code_of(sala_session_reset(session_)), 0);
}

TEST_F(CScheduler, ProgressAndWaitTellHowFarARequestIs) {
  create_for_one();
  sala_answer* first = submit_held(session_);
  sala_session* other = session();
  sala_answer* second = submit(other, prompt(50));
  EXPECT_EQ(progress(first).stage, SALA_STAGE_GENERATE);
  EXPECT_EQ(progress(first).prompt_tokens_done, 20);
  EXPECT_EQ(progress(second).stage, SALA_STAGE_WAITING);
  EXPECT_EQ(progress(second).prompt_tokens, 50);
  EXPECT_EQ(progress(second).prompt_tokens_done, 0);
  for (const double seconds : {0.0, -1.0, 0.001}) EXPECT_EQ(sala_answer_wait(second, seconds), 0);
  gate_.open();
  EXPECT_EQ(sala_answer_wait(second, 1e300), 1);
  EXPECT_EQ(take_all(second).tokens.size(), 12u);
  const auto ended = progress(second);
  EXPECT_EQ(ended.stage, SALA_STAGE_ENDED);
  EXPECT_EQ(ended.prompt_tokens_done, 50);
  EXPECT_EQ(ended.new_tokens, 12);
  EXPECT_EQ(sala_answer_wait(second, 0), 1);
  sala_answer_destroy(first);
  sala_answer_destroy(second);
  sala_session_destroy(other);
}

TEST_F(CScheduler, OneRequestMoreThanMayWaitIsRefused) {
  create_for_one(-1);
  sala_answer* answer = submit_held(session_);
  sala_session* other = session();
  EXPECT_EQ(try_submit(other, prompt(5)), (std::pair<sala_answer*, int32_t>(nullptr, SALA_ERROR_BUSY)));
  EXPECT_FALSE(is_busy(other));
  gate_.open();
  EXPECT_EQ(end(answer).finish, SALA_FINISH_MAX_NEW_TOKENS);
  EXPECT_EQ(end(submit(other)).tokens.size(), 12u);
  sala_session_destroy(other);
}

TEST_F(CScheduler, RequestThatWaitsForTooLongEndsBusy) {
  create_for_one();
  sala_answer* answer = submit_held(session_);
  sala_session* other = session();
  request_.max_wait = 0.001;
  sala_answer* late = submit(other);
  EXPECT_EQ(sala_answer_wait(late, 0.01), 0);
  gate_.open();
  const Ended ended = end(late);
  EXPECT_EQ(ended.code, SALA_ERROR_BUSY);
  EXPECT_FALSE(is_busy(other));
  sala_answer_destroy(answer);
  sala_session_destroy(other);
}

TEST_F(CScheduler, WhoWaitsIsStoppedOrCancelled) {
  create_for_one();
  sala_answer* held = submit_held(session_);
  sala_session *one = session(), *other = session();
  sala_answer *stopped = submit(one), *cancelled = submit(other);
  sala_session_stop(one);
  sala_answer_cancel(cancelled);
  gate_.open();
  EXPECT_EQ(end(stopped).code, SALA_ERROR_STOPPED);
  EXPECT_EQ(end(cancelled).finish, SALA_FINISH_CANCELLED);
  EXPECT_EQ(sala_session_position(one) + sala_session_position(other), 0);
  sala_answer_destroy(held);
  for (sala_session* each : {one, other}) sala_session_destroy(each);
}

TEST_F(CScheduler, RequestOfAHigherPriorityBeginsFirst) {
  create_for_one();
  sala_answer* held = submit_held(session_);
  std::vector<sala_session*> sessions{session(), session()};
  std::vector<int32_t> order;
  struct Told {
    std::vector<int32_t>& order;
    int32_t priority;
  } low{order, -1}, high{order, 1};
  std::vector<sala_answer*> answers;
  generate_.max_new_tokens = 1;
  request_.on_token = [](int32_t, void* data) {
    const auto& told = *static_cast<Told*>(data);
    told.order.push_back(told.priority);
    return 1;
  };
  for (Told* each : {&low, &high}) {
    request_.user_data = each;
    request_.priority = each->priority;
    answers.push_back(submit(sessions[answers.size()]));
  }
  gate_.open();
  for (sala_answer* answer : answers) EXPECT_EQ(end(answer).tokens.size(), 1u);
  EXPECT_EQ(order, (std::vector<int32_t>{1, -1}));
  sala_answer_destroy(held);
  for (sala_session* each : sessions) sala_session_destroy(each);
}

TEST_F(CScheduler, HandlesMayBeDestroyedInAnyOrder) {
  std::vector<int> order{0, 1, 2, 3};
  do {
    auto* loaded = new sala_model(Mock().model);
    sala_scheduler* scheduler = nullptr;
    sala_session* session = nullptr;
    sala_answer* answer = nullptr;
    ASSERT_EQ(code_of(sala_scheduler_create(loaded, nullptr, &scheduler)), 0);
    ASSERT_EQ(code_of(sala_session_create(loaded, nullptr, &session)), 0);
    const auto ids = prompt(20);
    generate_.max_new_tokens = 4000;
    ASSERT_EQ(code_of(sala_scheduler_submit(scheduler, session, ids.data(), ids.size(), &request_, &answer)), 0);
    for (const int which : order) {
      if (which == 0) sala_model_destroy(loaded);
      if (which == 1) sala_scheduler_destroy(scheduler);
      if (which == 2) sala_session_destroy(session);
      if (which == 3) sala_answer_destroy(answer);
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_F(CScheduler, AnswerOutlivesItsSchedulerAndSession) {
  create();
  sala_answer* answer = submit_held(session_);
  sala_session_destroy(std::exchange(session_, nullptr));
  model_.reset();
  sala_answer_cancel(answer);
  gate_.open();
  sala_scheduler_destroy(std::exchange(scheduler_, nullptr));
  EXPECT_EQ(progress(answer).stage, SALA_STAGE_ENDED);
  const Ended ended = end(answer);
  EXPECT_EQ(ended.tokens.size(), 1u);
  EXPECT_EQ(ended.finish, SALA_FINISH_CANCELLED);
}

TEST_F(CScheduler, StructsOfAnotherVersionAreUnderstoodOrRefused) {
  struct Longer {
    sala_scheduler_options known;
    int64_t later;
  } options{SALA_SCHEDULER_OPTIONS_INIT, 0};
  options.known.struct_size = sizeof options;
  create(&options.known);
  options.later = 1;
  sala_scheduler* refused = nullptr;
  const auto refusal = [&] { return message_of(sala_scheduler_create(model_.get(), &options.known, &refused)); };
  EXPECT_NE(refusal().find("does not know: update libsala"), std::string::npos);
  options.known.struct_size = offsetof(sala_scheduler_options, prefill_share);
  EXPECT_NE(refusal().find("begin with the SALA_..._INIT"), std::string::npos);
  EXPECT_EQ(refused, nullptr);
  request_.struct_size = offsetof(sala_request_options, user_data);
  EXPECT_EQ(try_submit(session_, prompt(5)).second, SALA_ERROR_INVALID_ARGUMENT);
  request_.struct_size = sizeof request_;
  sala_answer* answer = submit(session_);
  EXPECT_EQ(take_all(answer).tokens.size(), 12u);
  struct LongerProgress {
    sala_request_progress known;
    int64_t later;
  } told{SALA_REQUEST_PROGRESS_INIT, 0};
  told.known.struct_size = sizeof told;
  EXPECT_EQ(code_of(sala_answer_progress(answer, &told.known)), 0);
  EXPECT_EQ(told.known.struct_size, sizeof told);
  EXPECT_EQ(told.known.new_tokens, 12);
  told.known.struct_size = offsetof(sala_request_progress, new_tokens);
  EXPECT_EQ(code_of(sala_answer_progress(answer, &told.known)), SALA_ERROR_INVALID_ARGUMENT);
  sala_answer_destroy(answer);
}

TEST_F(CScheduler, WrongOptionsAreRefused) {
  const auto refusal = [&](auto member, auto value) {
    sala_scheduler_options options = SALA_SCHEDULER_OPTIONS_INIT;
    options.*member = value;
    return message_of(sala_scheduler_create(model_.get(), &options, &scheduler_));
  };
  EXPECT_EQ(refusal(&sala_scheduler_options::max_running, -1),
            "max_running is -1, expected 1 to 8, which is what this engine serves");
  EXPECT_EQ(refusal(&sala_scheduler_options::max_waiting, -2), "max_waiting is -2, expected -1 or more");
  EXPECT_EQ(refusal(&sala_scheduler_options::max_cache_bytes, -1), "max_cache_bytes is -1, expected 0 or more");
  EXPECT_EQ(refusal(&sala_scheduler_options::prefill_share, 1.0),
            "prefill_share is 1, expected a number between 0 and 1");
  EXPECT_EQ(scheduler_, nullptr);
}

TEST_F(CScheduler, RefusedRequestLeavesTheSessionAsItWas) {
  create();
  EXPECT_EQ(try_submit(session_, {}).second, SALA_ERROR_EMPTY_PROMPT);
  EXPECT_EQ(try_submit(session_, {kVocabSize}).second, SALA_ERROR_TOKEN_OUT_OF_RANGE);
  EXPECT_EQ(try_submit(session_, prompt(401)).second, SALA_ERROR_CONTEXT_EXCEEDED);
  const int32_t id = 3;
  sala_answer* answer = nullptr;
  EXPECT_EQ(code_of(sala_scheduler_submit(scheduler_, session_, &id, SIZE_MAX, &request_, &answer)),
            SALA_ERROR_CONTEXT_EXCEEDED);
  request_.max_wait = -1;
  EXPECT_EQ(try_submit(session_, {id}).second, SALA_ERROR_INVALID_ARGUMENT);
  request_.max_wait = 0;
  generate_.max_new_tokens = -1;
  EXPECT_EQ(try_submit(session_, {id}).second, SALA_ERROR_INVALID_ARGUMENT);
  EXPECT_EQ(sala_session_position(session_), 0);
  EXPECT_FALSE(is_busy(session_));
}

TEST_F(CScheduler, SessionsTooLargeForTheCachesEndOutOfMemory) {
  sala_scheduler_options options = SALA_SCHEDULER_OPTIONS_INIT;
  options.max_cache_bytes = 1;
  create(&options);
  EXPECT_EQ(end(submit(session_)).code, SALA_ERROR_OUT_OF_MEMORY);
  EXPECT_FALSE(is_busy(session_));
}

TEST_F(CScheduler, NullIsRefusedByNameOrDoesNothing) {
  create();
  const auto ids = prompt(5);
  sala_answer* answer = nullptr;
  sala_request_progress told = SALA_REQUEST_PROGRESS_INIT;
  int32_t token = 0, finish = 0;
  EXPECT_EQ(message_of(sala_scheduler_create(nullptr, nullptr, &scheduler_)), "model is NULL");
  EXPECT_EQ(message_of(sala_scheduler_create(model_.get(), nullptr, nullptr)), "scheduler is NULL");
  EXPECT_EQ(message_of(sala_scheduler_submit(nullptr, session_, ids.data(), 5, nullptr, &answer)), "scheduler is NULL");
  EXPECT_EQ(message_of(sala_scheduler_submit(scheduler_, nullptr, ids.data(), 5, nullptr, &answer)), "session is NULL");
  EXPECT_EQ(message_of(sala_scheduler_submit(scheduler_, session_, nullptr, 5, nullptr, &answer)), "token_ids is NULL");
  EXPECT_EQ(message_of(sala_scheduler_submit(scheduler_, session_, ids.data(), 5, nullptr, nullptr)), "answer is NULL");
  EXPECT_EQ(message_of(sala_answer_next(nullptr, &token, &finish)), "answer is NULL");
  EXPECT_EQ(message_of(sala_answer_progress(nullptr, &told)), "answer is NULL");
  answer = submit(session_);
  EXPECT_EQ(message_of(sala_answer_next(answer, nullptr, &finish)), "token_id is NULL");
  EXPECT_EQ(message_of(sala_answer_next(answer, &token, nullptr)), "finish is NULL");
  EXPECT_EQ(message_of(sala_answer_progress(answer, nullptr)), "progress is NULL");
  sala_answer_destroy(answer);
  EXPECT_EQ(sala_answer_wait(nullptr, 1), 0);
  sala_answer_cancel(nullptr);
  sala_answer_destroy(nullptr);
  sala_scheduler_destroy(nullptr);
}

}  // namespace
}  // namespace sala::test
