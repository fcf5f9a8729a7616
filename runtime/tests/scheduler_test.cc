// Requests that run side by side: the tokens of each session alone, who goes first, what is refused, what an error
// concerns.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <stdexcept>
#include <tuple>

#include "requests.h"
#include "session/turn_balance.h"

namespace sala::test {
namespace {

TEST(Scheduler, GivesEachSessionTheTokensThatItGivesAlone) {
  const Mock mock = paged_mock(), reference;
  auto scheduler = Scheduler::create(mock.model);
  ASSERT_TRUE(scheduler) << scheduler.error().message;
  std::vector<Session> sessions;
  std::vector<Answer> answers;
  for (int64_t i = 0; i < 20; ++i) sessions.push_back(mock.session(i % 5 == 4 ? 2048 : 4096, 16 + i));
  for (int turn = 0; turn < 3; ++turn) {
    answers.clear();
    for (size_t i = 0; i < sessions.size(); ++i) {
      const auto length = static_cast<int64_t>(turn == 1 && i % 4 == 0 ? 0 : 1 + i * 13 % 90);
      answers.push_back(*scheduler->submit(sessions[i], prompt(length), answer_of(10 + turn, 0.7)));
    }
    for (size_t i = 0; i < sessions.size(); ++i) {
      all(answers[i]);
      EXPECT_EQ(answers[i].finish_reason(), FinishReason::kMaxNewTokens);
    }
  }
  int64_t most = 0;
  for (const Step& step : mock.steps()) most = std::max(most, step.batch);
  EXPECT_GT(most, 2) << "they share steps";
  for (size_t i = 0; i < sessions.size(); ++i) {
    SCOPED_TRACE(i);
    Session alone = reference.session();
    for (int turn = 0; turn < 3; ++turn) {
      const auto length = static_cast<int64_t>(turn == 1 && i % 4 == 0 ? 0 : 1 + i * 13 % 90);
      if (length > 0) {
        ASSERT_TRUE(alone.prefill(prompt(length)));
      }
      auto generation = alone.generate(answer_of(10 + turn, 0.7).generate);
      all(*generation);
    }
    EXPECT_TRUE(std::ranges::equal(sessions[i].tokens(), alone.tokens()));
    EXPECT_EQ(values(*sessions[i].prefill(prompt(2))), values(*alone.prefill(prompt(2))));
  }
}

/// What a request has become: what a session alone has to do for the same.
struct Done {
  int64_t position;  // before the request
  std::vector<int32_t> prompt;
  std::vector<int32_t> tokens;
  int64_t prompt_tokens_done;
};

TEST(Scheduler, AnyScheduleGivesTheLogitsOfEachSessionAlone) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&](int64_t most) { return static_cast<int64_t>(random() % static_cast<uint64_t>(most)); };
    const Mock mock = seed % 4 == 0 ? Mock() : paged_mock();
    const Mock reference;
    auto scheduler =
        Scheduler::create(mock.model, {.max_running = 1 + below(8), .prefill_share = 0.1 + 0.2 * below(5)});
    ASSERT_TRUE(scheduler) << scheduler.error().message;
    std::vector<Session> sessions;
    for (int i = 0; i < 9; ++i) sessions.push_back(mock.session(below(4) == 0 ? 1000 : 4096, 1 + below(40)));
    std::vector<std::vector<Done>> done(sessions.size());
    for (int turn = 0; turn < 3; ++turn) {
      std::vector<Answer> answers;
      std::vector<Done> asked;
      for (size_t i = 0; i < sessions.size(); ++i) {
        asked.push_back({sessions[i].position(), prompt((sessions[i].position() == 0 ? 1 : 0) + below(100)), {}, 0});
        RequestOptions options = answer_of(below(25));
        options.priority = static_cast<int32_t>(below(3));
        if (below(3) == 0) options.on_token = [left = below(9)](int32_t) mutable { return left-- > 0; };
        answers.push_back(*scheduler->submit(sessions[i], asked[i].prompt, std::move(options)));
        if (below(4) == 0) answers[static_cast<size_t>(below(static_cast<int64_t>(i) + 1))].cancel();
      }
      for (size_t i = 0; i < sessions.size(); ++i) {
        if (below(5) == 0) answers[i].cancel();
        asked[i].tokens = all(answers[i]);
        asked[i].prompt_tokens_done = answers[i].progress().prompt_tokens_done;
        EXPECT_EQ(static_cast<int64_t>(asked[i].tokens.size()), answers[i].progress().new_tokens);
        done[i].push_back(std::move(asked[i]));
      }
    }
    for (size_t i = 0; i < sessions.size(); ++i) {
      Session alone = reference.session(4096, sessions[i].chunk_tokens());
      for (const Done& each : done[i]) {
        PrefillOptions options;
        options.on_progress = [&](const PrefillProgress& at) { return at.tokens_done < each.prompt_tokens_done; };
        if (each.prompt_tokens_done > 0) static_cast<void>(alone.prefill(each.prompt, options));
        for (size_t n = 0; n < each.tokens.size(); ++n) {
          auto generation = alone.generate(answer_of(1).generate);
          EXPECT_EQ(**generation->next(), each.tokens[n]);
        }
      }
      ASSERT_TRUE(std::ranges::equal(sessions[i].tokens(), alone.tokens())) << "session " << i;
      EXPECT_EQ(values(*sessions[i].prefill(prompt(3))), values(*alone.prefill(prompt(3))));
    }
    if (HasFailure()) return;
  }
}

TEST(Scheduler, TheHigherPriorityBeginsFirstAndThenTheOlder) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model, {.max_running = 1});
  Gate gate(mock, *scheduler);
  std::vector<Session> sessions;
  std::vector<Answer> answers;
  std::vector<size_t> order;
  for (const int32_t priority : {0, 5, -1, 5, 0}) {
    sessions.push_back(mock.session());
    RequestOptions options = answer_of(1);
    options.priority = priority;
    options.on_end = [&order, place = answers.size()](const Status&) { order.push_back(place); };
    answers.push_back(*scheduler->submit(sessions.back(), prompt(20), std::move(options)));
  }
  EXPECT_EQ(answers[0].progress().stage, RequestStage::kWaiting);
  gate.open();
  for (Answer& answer : answers) all(answer);
  EXPECT_EQ(order, (std::vector<size_t>{1, 3, 0, 4, 2}));
}

TEST(Scheduler, PromptsOfOnePriorityTakeChunksInTurnAndAHigherOneGoesBefore) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  std::optional<Gate> gate(std::in_place, mock, *scheduler);
  const size_t before = mock.steps().size();
  std::vector<Session> sessions;
  std::vector<Answer> answers;
  for (const int32_t priority : {0, 0, 3}) {
    sessions.push_back(mock.session(4096, 20 + static_cast<int64_t>(sessions.size())));
    RequestOptions options = answer_of(0);
    options.priority = priority;
    answers.push_back(*scheduler->submit(sessions.back(), prompt(100), std::move(options)));
  }
  gate->open();
  for (Answer& answer : answers) all(answer);
  std::vector<int64_t> chunks;
  for (size_t i = before; i < mock.steps().size(); ++i) chunks.push_back(mock.steps()[i].tokens);
  EXPECT_EQ(chunks, (std::vector<int64_t>{22, 22, 22, 22, 12, 20, 21, 20, 21, 20, 21, 20, 21, 20, 16}));
}

TEST(Scheduler, TimeIsDividedAsTold) {
  TurnBalance balance(0.25);
  double prefill = 0, answers = 0;
  for (int i = 0; i < 10000; ++i) {
    if (balance.is_for_prefill()) {
      balance.spend_on_prefill(0.4);
      prefill += 0.4;
    } else {
      balance.spend_on_answers(0.007);
      answers += 0.007;
    }
  }
  EXPECT_NEAR(prefill / (prefill + answers), 0.25, 0.01);
  balance.spend_on_prefill(1000);
  balance.settle();
  EXPECT_TRUE(balance.is_for_prefill()) << "a prompt that comes to answers has its first chunk at once";
}

TEST(Scheduler, RefusesMoreThanMayWait) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model, {.max_running = 1, .max_waiting = 2});
  Gate gate(mock, *scheduler);
  std::vector<Session> sessions;
  for (int i = 0; i < 3; ++i) sessions.push_back(mock.session());
  Answer one = *scheduler->submit(sessions[0], prompt(9), answer_of(2));
  std::optional<Answer> two = *scheduler->submit(sessions[1], prompt(9), answer_of(2));
  const auto refused = scheduler->submit(sessions[2], prompt(9), answer_of(2));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kBusy);
  EXPECT_NE(refused.error().message.find("1 requests run and 2 wait"), std::string::npos) << refused.error().message;
  two->cancel();
  gate.open();
  EXPECT_TRUE(all(*two).empty());
  EXPECT_EQ(two->finish_reason(), FinishReason::kCancelled);
  EXPECT_EQ(sessions[1].position(), 0) << "it had not begun";
  EXPECT_EQ(all(one).size(), 2u);
  EXPECT_TRUE(scheduler->submit(sessions[2], prompt(9), answer_of(2)));
}

TEST(Scheduler, EndsWhatHasWaitedForTooLong) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model, {.max_running = 1});
  Gate gate(mock, *scheduler, 2);
  Session session = mock.session(), patient = mock.session();
  RequestOptions options = answer_of(1);
  options.max_wait = 0.001;
  Answer answer = *scheduler->submit(session, prompt(9), std::move(options));
  options = answer_of(1);
  options.max_wait = 3600;
  Answer other = *scheduler->submit(patient, prompt(9), std::move(options));
  EXPECT_FALSE(answer.wait_for(std::chrono::milliseconds(20)));
  gate.open();
  EXPECT_EQ(answer.next().error().code, ErrorCode::kBusy);
  EXPECT_EQ(answer.progress().stage, RequestStage::kEnded);
  EXPECT_EQ(all(other).size(), 1u);
}

TEST(Scheduler, WaitsForMemoryThatOthersMayStillTake) {
  const Mock mock = paged_mock();
  Memory& memory = mock.model.engine().memory();
  std::vector<Session> sessions;
  for (int i = 0; i < 3; ++i)
    sessions.push_back(*mock.model.create_session({.max_context = 1 << 20, .chunk_tokens = 2000}));
  // Of 100,000 tokens: keys and values of two heads of three floats, and half and an eighth as many compressed ones.
  const int64_t bytes = 100'000 * 2 * 3 * 4 * (2 * 8 + 4 + 1) / 8;
  auto scheduler = Scheduler::create(mock.model, {.max_cache_bytes = memory.used_bytes() + bytes * 3 / 2});
  std::vector<Answer> answers;
  answers.push_back(*scheduler->submit(sessions[0], prompt(10), answer_of(100'000)));
  answers.push_back(*scheduler->submit(sessions[1], prompt(100'000), answer_of(3)));
  answers.push_back(*scheduler->submit(sessions[2], prompt(10), answer_of(3)));
  ASSERT_TRUE(answers[0].next());
  EXPECT_EQ(answers[1].progress().stage, RequestStage::kWaiting);
  EXPECT_EQ(answers[2].progress().stage, RequestStage::kWaiting) << "nobody overtakes";
  answers[0].cancel();
  EXPECT_EQ(all(answers[1]).size(), 3u) << "what the first one did not take is free";
  EXPECT_EQ(all(answers[2]).size(), 3u);
  Answer too_long = *scheduler->submit(sessions[0], prompt(200'000), answer_of(3));
  const auto refused = too_long.next();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
  EXPECT_NE(refused.error().message.find("of max_cache_bytes"), std::string::npos) << refused.error().message;
  EXPECT_TRUE(sessions[0].decode(4)) << "it is as it was";
}

TEST(Scheduler, AnswersThatAreLetGoEndAndTheirSessionsAreFree) {
  const Mock mock = paged_mock(), reference;
  auto scheduler = Scheduler::create(mock.model);
  Session session = mock.session(), same = reference.session();
  bool is_free = false;
  {
    RequestOptions options = answer_of(4000);
    options.on_end = [&](const Status&) { is_free = true; };
    Answer answer = *scheduler->submit(session, prompt(30), std::move(options));
    ASSERT_TRUE(answer.next());
    Answer moved = std::move(answer);
    ASSERT_TRUE(moved.next());
  }
  EXPECT_TRUE(is_free);
  ASSERT_TRUE(same.prefill(prompt(30)));
  auto generation = same.generate(answer_of(session.position() - 30).generate);
  const auto expected = all(*generation);
  EXPECT_TRUE(std::ranges::equal(session.tokens().subspan(30), expected));
}

TEST(Scheduler, ThatIsLetGoCancelsItsRequests) {
  const Mock mock = paged_mock();
  std::optional<Scheduler> scheduler = *Scheduler::create(mock.model, {.max_running = 1});
  Session running = mock.session(), waiting = mock.session();
  Answer one = *scheduler->submit(running, prompt(30), answer_of(4000));
  Answer two = *scheduler->submit(waiting, prompt(30), answer_of(4000));
  ASSERT_TRUE(one.next());
  scheduler.reset();
  EXPECT_EQ(all(one).size(), static_cast<size_t>(running.position() - 30 - 1)) << "what was drawn before is not lost";
  EXPECT_TRUE(all(two).empty());
  EXPECT_EQ(two.finish_reason(), FinishReason::kCancelled);
  EXPECT_TRUE(running.prefill(prompt(3)));
}

TEST(Scheduler, FailedStepConcernsThoseWhoTakePart) {
  for (const bool throws : {false, true}) {
    SCOPED_TRACE(throws);
    const Mock mock = paged_mock();
    auto scheduler = Scheduler::create(mock.model, {.max_running = 2});
    std::vector<Session> sessions;
    for (int i = 0; i < 3; ++i) sessions.push_back(mock.session());
    RequestOptions options = answer_of(500);
    options.on_token = [&, has_seen = false](int32_t) mutable {
      // The next step is of the same two.
      if (!std::exchange(has_seen, mock.steps().back().batch == 2) && mock.steps().back().batch == 2) {
        (throws ? mock.engine->log_->throw_at : mock.engine->log_->fail_at) = mock.steps().size();
      }
      return true;
    };
    std::vector<Answer> answers;
    answers.push_back(*scheduler->submit(sessions[0], prompt(3), std::move(options)));
    answers.push_back(*scheduler->submit(sessions[1], prompt(3), answer_of(500)));
    answers.push_back(*scheduler->submit(sessions[2], prompt(3), answer_of(3)));
    EXPECT_EQ(all(answers[2]).size(), 3u);
    for (const size_t lost : {0, 1}) {
      const auto last = [&] {
        auto token = answers[lost].next();
        while (token && *token) token = answers[lost].next();
        return token;
      };
      if (throws) {
        EXPECT_THROW(last(), std::bad_alloc);
      } else {
        EXPECT_EQ(last().error().code, ErrorCode::kEngineFailed);
      }
      EXPECT_EQ(scheduler->submit(sessions[lost], prompt(3)).error().code, ErrorCode::kSessionPoisoned);
      ASSERT_TRUE(sessions[lost].reset());
    }
    for (Session& session : sessions) answers.push_back(*scheduler->submit(session, prompt(3), answer_of(4)));
    for (size_t i = 3; i < answers.size(); ++i) EXPECT_EQ(all(answers[i]).size(), 4u);
  }
}

TEST(Scheduler, FailedPromptAndThrowingCallbackEndOneAnswer) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  Session failing = mock.session(), throwing = mock.session(), other = mock.session();
  mock.engine->log_->fail_at = mock.steps().size() + 1;
  Answer failed = *scheduler->submit(failing, prompt(100), answer_of(3));
  EXPECT_EQ(failed.next().error().code, ErrorCode::kEngineFailed);
  RequestOptions options = answer_of(9);
  options.on_token = [](int32_t) -> bool { throw std::runtime_error("the caller's own"); };
  Answer thrown = *scheduler->submit(throwing, prompt(20), std::move(options));
  EXPECT_TRUE(*thrown.next()) << "the token is in the context";
  EXPECT_THROW(static_cast<void>(thrown.next()), std::runtime_error);
  EXPECT_EQ(throwing.position(), 21);
  EXPECT_TRUE(throwing.prefill(prompt(2)));
  Answer fine = *scheduler->submit(other, prompt(20), answer_of(3));
  EXPECT_EQ(all(fine).size(), 3u);
}

TEST(Scheduler, EndsAtStopTokensAndWhereTheContextIsFull) {
  const Mock mock = paged_mock(), reference;
  Session same = reference.session();
  ASSERT_TRUE(same.prefill(prompt(30)));
  auto alone = same.generate({10, {}, std::vector<int32_t>{}});
  const auto expected = all(*alone);
  auto scheduler = Scheduler::create(mock.model);
  Session stopping = mock.session(), full = mock.session(35);
  RequestOptions options = answer_of(10);
  options.generate.stop_tokens = std::vector<int32_t>{expected[4]};
  Answer stopped = *scheduler->submit(stopping, prompt(30), std::move(options));
  Answer filled = *scheduler->submit(full, prompt(30), answer_of(10));
  EXPECT_EQ(all(stopped), std::vector(expected.begin(), std::ranges::find(expected, expected[4])));
  EXPECT_EQ(stopped.finish_reason(), FinishReason::kStopToken);
  EXPECT_EQ(all(filled), std::vector(expected.begin(), expected.begin() + 5));
  EXPECT_EQ(filled.finish_reason(), FinishReason::kMaxContext);
}

TEST(Scheduler, TellsOfEveryChangeWhenItCanBeSeen) {
  using Seen = std::tuple<RequestStage, int64_t, int64_t>;
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  Gate gate(mock, *scheduler, 2);
  Session session = mock.session();
  std::optional<Answer> answer;
  std::promise<void> ended;
  std::vector<Seen> seen;
  RequestOptions options = answer_of(2);
  options.on_change = [&] {
    const RequestProgress now = answer->progress();
    seen.emplace_back(now.stage, now.prompt_tokens_done, now.tokens_ready);
    if (now.stage == RequestStage::kEnded) ended.set_value();
  };
  answer = *scheduler->submit(session, prompt(40), std::move(options));
  gate.open();
  ended.get_future().wait();
  constexpr auto kPrefill = RequestStage::kPrefill, kGenerate = RequestStage::kGenerate;
  EXPECT_EQ(seen, (std::vector<Seen>{{kPrefill, 0, 0},
                                     {kPrefill, 16, 0},
                                     {kPrefill, 32, 0},
                                     {kPrefill, 40, 0},
                                     {kGenerate, 40, 0},
                                     {kGenerate, 40, 1},
                                     {kGenerate, 40, 2},
                                     {RequestStage::kEnded, 40, 2}}));
  ASSERT_TRUE(answer->next());
  EXPECT_EQ(answer->progress().tokens_ready, 1);
}

TEST(Scheduler, TellsOfEndsAlsoWhereTheAnswerIsGone) {
  const Mock mock = paged_mock();
  std::optional<Scheduler> scheduler = *Scheduler::create(mock.model);
  std::atomic<int> calls = 0;
  for (int i = 0; i < 300; ++i) {
    Session session = mock.session();
    RequestOptions options = answer_of(i % 3);
    options.on_change = [&] { ++calls; };
    const std::optional<Answer> answer = *scheduler->submit(session, prompt(3), std::move(options));
    answer->wait();
  }
  scheduler.reset();
  EXPECT_EQ(calls, 300 * 4 + 300) << "begin, prompt, answer and end of each, and its tokens";
}

TEST(Scheduler, KeepsCheckpointsWhereItIsTold) {
  const Mock mock = paged_mock(), reference;
  auto scheduler = Scheduler::create(mock.model);
  for (const auto& [length, chunk, wanted] :
       std::vector<std::tuple<int64_t, int64_t, std::vector<int64_t>>>{{100, 16, {1, 2, 48, 63, 99}},
                                                                       {30, 16, {7, 16}},  // all is dense
                                                                       {90, 16, {35, 39, 41, 44}},
                                                                       {25, 100, {3}},
                                                                       {40, 1, {20}}}) {
    SCOPED_TRACE(length);
    Session session = *mock.model.create_session({4096, chunk, 20}), whole = reference.session(4096, chunk);
    for (int turn = 0; turn < 2; ++turn) {  // the second behind a token that has not run
      const int64_t before = session.position();
      RequestOptions options = answer_of(2);
      for (const int64_t each : wanted) options.checkpoints.push_back(before + each);
      const size_t steps = mock.steps().size();
      Answer answer = *scheduler->submit(session, prompt(length), std::move(options));
      const auto tokens = all(answer);
      EXPECT_EQ(answer.progress().prompt_tokens_done, length);
      for (size_t i = steps; i < mock.steps().size(); ++i) EXPECT_LE(mock.steps()[i].tokens, chunk);
      ASSERT_TRUE(whole.prefill(prompt(length)));
      auto alone = whole.generate(answer_of(2).generate);
      EXPECT_EQ(tokens, all(*alone));
      for (const int64_t each : wanted) {
        EXPECT_TRUE(std::ranges::count(session.checkpoints(), before + each)) << each;
        Session fork = *session.fork();
        EXPECT_EQ(*fork.rewind(before + each), before + each);
      }
    }
    const int64_t at = wanted.back();
    ASSERT_TRUE(session.rewind(at));
    PrefillOptions rest;
    rest.context_length = length;
    const std::vector<int32_t> ids = prompt(length);
    Session other = reference.session();
    EXPECT_EQ(values(*session.prefill(std::span(ids).subspan(static_cast<size_t>(at)), rest)),
              values(*other.prefill(ids)));
  }
}

TEST(Scheduler, RefusesCheckpointsOutsideThePrompt) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  Session session = mock.session(), keeps_none = *mock.model.create_session({4096, 16, 0});
  ASSERT_TRUE(session.prefill(prompt(10)));
  const auto refused = [&](Session& used, std::vector<int64_t> positions) {
    RequestOptions options = answer_of(1);
    options.checkpoints = std::move(positions);
    const auto answer = scheduler->submit(used, prompt(20), std::move(options));
    return answer ? std::nullopt : std::optional(answer.error());
  };
  for (const std::vector<int64_t>& wrong :
       {std::vector<int64_t>{10}, {30}, {-1}, {12, 12}, {15, 14}, {INT64_MAX}, {INT64_MIN, 15}}) {
    const auto reason = refused(session, wrong);
    ASSERT_TRUE(reason);
    EXPECT_EQ(reason->code, ErrorCode::kInvalidArgument);
    EXPECT_NE(reason->message.find("from 11 to 29"), std::string::npos) << reason->message;
  }
  EXPECT_EQ(refused(keeps_none, {5})->code, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(refused(session, {11, 29}));
}

TEST(Scheduler, RefusesWhatCannotBe) {
  const Mock mock = paged_mock(), stranger = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  Session session = mock.session(50), foreign = stranger.session();
  const auto code = [&](Session& used, std::vector<int32_t> given, RequestOptions options = {}) {
    const auto answer = scheduler->submit(used, std::move(given), std::move(options));
    return answer ? std::nullopt : std::optional(answer.error().code);
  };
  EXPECT_EQ(code(foreign, prompt(3)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(session, {}), ErrorCode::kEmptyPrompt);
  EXPECT_EQ(code(session, prompt(51)), ErrorCode::kContextExceeded);
  EXPECT_EQ(code(session, {1, kVocabSize}), ErrorCode::kTokenOutOfRange);
  EXPECT_EQ(code(session, prompt(3), answer_of(-1)), ErrorCode::kInvalidArgument);
  RequestOptions options;
  options.max_wait = -1;
  EXPECT_EQ(code(session, prompt(3), std::move(options)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(session.position(), 0);
  Gate gate(mock, *scheduler);
  Answer answer = *scheduler->submit(session, prompt(3), answer_of(1));
  EXPECT_EQ(code(session, prompt(3)), ErrorCode::kInvalidArgument) << "it has a request";
  gate.open();
  for (const SchedulerOptions& wrong : {SchedulerOptions{.max_running = 0}, SchedulerOptions{.max_running = 9},
                                        SchedulerOptions{.max_waiting = -1}, SchedulerOptions{.max_cache_bytes = -1},
                                        SchedulerOptions{.prefill_share = 0}, SchedulerOptions{.prefill_share = 1}}) {
    const auto made = Scheduler::create(mock.model, wrong);
    ASSERT_FALSE(made);
    EXPECT_EQ(made.error().code, ErrorCode::kInvalidArgument);
  }
  const Mock alone;
  EXPECT_TRUE(Scheduler::create(alone.model, {.max_running = 100})) << "each takes steps of its own";
}

}  // namespace
}  // namespace sala::test
