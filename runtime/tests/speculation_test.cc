// Answers with drafts: the steps that they take, and what is left when one fails. That they are the answers without is
// also for the schedules of session_fork_test.cc.

#include <optional>

#include "requests.h"
#include "sala/batch.h"
#include "some_tokens.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

GenerateOptions loop(int64_t tokens, std::optional<int64_t> speculation, const std::vector<int32_t>& words = {5}) {
  GenerateOptions options = answer_of(tokens).generate;
  options.constraint = some_tokens(words);
  options.speculation = speculation;
  return options;
}

/// A session that answered `length` tokens of one kind, so that drafts for more of them are right.
Session looping(const Mock& mock, int64_t length) {
  Session session = mock.session();
  EXPECT_TRUE(session.prefill(prompt(length - 6)));
  auto generation = session.generate(loop(6, {}));
  all(*generation);
  mock.steps().clear();
  return session;
}

TEST(Speculation, RunsDraftsWithThePendingTokenAndNoneTwiceWhereAllAreRight) {
  const Mock mock;
  Session session = looping(mock, 100);
  auto generation = session.generate(loop(16, 5));
  EXPECT_EQ(all(*generation), std::vector<int32_t>(16, 5));
  // The pending token and 4 drafts, then 5, then as many as the answer can still use.
  EXPECT_EQ(mock.steps(),
            (std::vector<Step>{
                {Profile::kPrefill, 5, 99, 104}, {Profile::kPrefill, 6, 104, 110}, {Profile::kPrefill, 5, 110, 115}}));
  const SpeculationCounts counts = generation->speculation();
  EXPECT_EQ(counts.tokens, 16);
  EXPECT_EQ(counts.drafted, 13);
  EXPECT_EQ(counts.accepted, 13);
  EXPECT_EQ(counts.tokens_per_step(), 16.0 / 3);
  EXPECT_EQ(session.past_length(), 115);
}

TEST(Speculation, StepEndsWhereTheContextBecomesSparse) {
  const Mock mock;
  Session session = looping(mock, kDenseLength - 3);
  auto generation = session.generate(loop(12, 5));
  all(*generation);
  constexpr int64_t n = kDenseLength;
  EXPECT_EQ(mock.steps(), (std::vector<Step>{{Profile::kPrefill, 3, n - 4, n - 1},
                                             {Profile::kPrefill, 5, n - 1, n + 4},
                                             {Profile::kPrefill, 4, n + 4, n + 8}}));
}

TEST(Speculation, TokensThatTheStatesLackRunAtTheHeadOfTheNextStep) {
  const Mock mock;
  Session session = looping(mock, 100);
  auto generation = session.generate(loop(9, 5, {6}));
  EXPECT_EQ(all(*generation), std::vector<int32_t>(9, 6));
  // 4 wrong drafts. Then the same token again with the first 6, a pause of one step. After three times 6 there are
  // drafts.
  EXPECT_EQ(mock.steps()[0], (Step{Profile::kPrefill, 5, 99, 104}));
  EXPECT_EQ(mock.steps()[1], (Step{Profile::kPrefill, 2, 99, 101}));
  EXPECT_EQ(mock.steps()[2], (Step{Profile::kDecode, 1, 101, 102}));
  EXPECT_EQ(generation->speculation().accepted, generation->speculation().drafted - 4);
}

TEST(Speculation, OtherUseOfTheSessionRunsThemAlone) {
  const Mock mock;
  for (const int64_t read : {1, 2, 4}) {
    Session session = looping(mock, 100), same = looping(mock, 100);
    auto generation = session.generate(loop(20, 5));
    for (int64_t i = 0; i < read; ++i) ASSERT_TRUE(generation->next());
    auto plain = same.generate(loop(read, {}));
    all(*plain);
    const auto expected = values(*same.prefill(prompt(3)));
    mock.steps().clear();
    EXPECT_EQ(values(*session.prefill(prompt(3))), expected);
    const Step replay{read == 1 ? Profile::kDecode : Profile::kPrefill, read, 99, 99 + read};
    EXPECT_EQ(mock.steps().front(), replay) << "as many as were drawn";
    EXPECT_EQ(mock.steps().size(), 2u);
  }
}

TEST(Speculation, FailedStepPoisonsTheSessionUntilReset) {
  const Mock mock;
  Session session = looping(mock, 50);
  auto generation = session.generate(loop(40, 5));
  mock.engine->log_->fail_at = 1;
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(generation->next());
  EXPECT_EQ(generation->next().error().code, ErrorCode::kEngineFailed);
  EXPECT_EQ(generation->next().error().code, ErrorCode::kSessionPoisoned);
  ASSERT_TRUE(session.reset());
  Session same = mock.session();
  EXPECT_EQ(values(*session.prefill(prompt(20))), values(*same.prefill(prompt(20))));
}

TEST(Speculation, SessionThatCannotRunWhatTheStatesLackIsPoisoned) {
  const Mock mock;
  Session session = looping(mock, 50);
  auto generation = session.generate(loop(40, 5));
  ASSERT_TRUE(generation->next());
  mock.engine->log_->fail_at = mock.steps().size();
  EXPECT_EQ(session.fork().error().code, ErrorCode::kEngineFailed);
  EXPECT_EQ(session.decode(5).error().code, ErrorCode::kSessionPoisoned);
}

TEST(Speculation, AnswerGoesOnWithoutDraftsWhereCopiesOfTheStatesHaveNoRoom) {
  const Mock mock;
  Session session = looping(mock, 50), same = looping(mock, 50);
  mock.engine->memory_.limit_bytes_ = mock.engine->memory_.live_bytes_;
  auto generation = session.generate(loop(8, 5)), expected = same.generate(loop(8, {}));
  EXPECT_EQ(all(*generation), all(*expected));
  EXPECT_EQ(generation->speculation().drafted, 0);
  EXPECT_EQ(values(*session.decode(9)), values(*same.decode(9)));
}

TEST(Speculation, DraftsOfAnAnswerThatWasLeftAreNotCountedByTheNext) {
  const Mock mock;
  Session session = looping(mock, 100);
  auto left = session.generate(loop(20, 5));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(left->next());
  auto generation = session.generate(loop(1, 5));
  EXPECT_EQ(all(*generation), std::vector<int32_t>{5});
  EXPECT_EQ(generation->speculation().accepted, 0);
  EXPECT_EQ(generation->speculation().tokens_per_step(), 1.0);
}

TEST(Speculation, RefusesWhatCannotBe) {
  const Mock mock = paged_mock();
  Session session = looping(mock, 50);
  for (const int64_t tokens : {int64_t{0}, kMostDraftTokens + 1}) {
    EXPECT_EQ(session.generate(loop(8, tokens)).error().code, ErrorCode::kInvalidArgument);
  }
  Session* const member = &session;
  EXPECT_EQ(mock.model.generate_batch({&member, 1}, std::vector{loop(8, 5)}).error().code, ErrorCode::kInvalidArgument);
}

/// On a mock of the fake GPU, whose memory can be made short.
class SpeculationOnPages : public TensorRt {};

TEST_F(SpeculationOnPages, WhereOnlyDraftsHaveNoRoomTheAnswerGoesOnUntilItHasNone) {
  cuda().page_bytes = 4096;
  {
    Mock mock;
    mock.engine->paged_memory_ = *cuda_memory(0);
    std::vector<std::vector<int32_t>> found;
    for (const std::optional<int64_t> speculation : {std::optional<int64_t>(), std::optional<int64_t>(5)}) {
      cuda().total_bytes = int64_t{1} << 30;
      Session session = looping(mock, 320);
      auto generation = session.generate(loop(60, speculation, {5, 6}));
      ASSERT_TRUE(generation->next());
      cuda().total_bytes = cuda().used_bytes();
      auto& tokens = found.emplace_back();
      auto token = generation->next();
      for (; token && *token; token = generation->next()) tokens.push_back(**token);
      ASSERT_EQ(token.error().code, ErrorCode::kOutOfMemory);
      EXPECT_EQ(session.past_length(), 341) << "the row of token 342 lies on another page";
      if (speculation) {
        EXPECT_GT(generation->speculation().accepted, 0);
      }
      cuda().total_bytes = int64_t{1} << 30;
      for (token = generation->next(); token && *token; token = generation->next()) tokens.push_back(**token);
    }
    EXPECT_EQ(found[0].size(), 59u);
    EXPECT_EQ(found[0], found[1]);
  }
  EXPECT_TRUE(cuda().pages.empty());
}

TEST(Speculation, AnswersOfASchedulerShareStepsWhereTheyHaveNoDrafts) {
  const Mock mock = paged_mock(), reference;
  auto scheduler = Scheduler::create(mock.model);
  std::vector<Session> sessions;
  std::vector<Answer> answers;
  const auto options_of = [](size_t i, std::optional<int64_t> speculation) {
    RequestOptions options = answer_of(40, i % 2 == 0 ? 0 : 900);
    if (i % 3 != 2) options.generate.constraint = some_tokens(i % 3 == 0 ? std::vector{5, 6} : std::vector{7});
    options.generate.speculation = speculation;
    return options;
  };
  for (size_t i = 0; i < 9; ++i) sessions.push_back(mock.session());
  for (size_t i = 0; i < 9; ++i) {
    answers.push_back(*scheduler->submit(sessions[i], prompt(20 + 3 * static_cast<int64_t>(i)), options_of(i, 4)));
  }
  for (size_t i = 0; i < 9; ++i) {
    SCOPED_TRACE(i);
    Session alone = reference.session();
    ASSERT_TRUE(alone.prefill(prompt(20 + 3 * static_cast<int64_t>(i))));
    auto generation = alone.generate(options_of(i, {}).generate);
    EXPECT_EQ(all(answers[i]), all(*generation));
    EXPECT_EQ(values(*sessions[i].prefill(prompt(2))), values(*alone.prefill(prompt(2))));
  }
  const auto is_shared = [](const Step& step) { return step.batch > 2; };
  const auto has_drafts = [](const Step& step) { return step.batch == 1 && step.past_length > 30 && step.tokens == 5; };
  EXPECT_GT(std::ranges::count_if(mock.steps(), is_shared), 10);
  EXPECT_GT(std::ranges::count_if(mock.steps(), has_drafts), 10);
}

}  // namespace
}  // namespace sala::test
