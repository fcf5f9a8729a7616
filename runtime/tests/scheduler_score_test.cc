// How probable the model finds the tokens of a prompt, of requests that run side by side.

#include <cmath>
#include <memory>
#include <vector>

#include "requests.h"
#include "wanted_scores.h"

namespace sala::test {
namespace {

RequestOptions scored(int64_t tokens, int64_t top) {
  RequestOptions options = answer_of(tokens, 0.7);
  options.prompt_logprobs = top;
  return options;
}

TEST(SchedulerScores, AreThoseOfEachPromptAloneWhateverRunsBesideIt) {
  const Mock mock = paged_mock(), reference;
  auto scheduler = Scheduler::create(mock.model);
  const std::vector<int64_t> lengths = {1, 2, kDenseLength - 1, kDenseLength, 75, 130};
  std::vector<Session> sessions, alone;
  for (size_t i = 0; i < lengths.size(); ++i) {
    sessions.push_back(mock.session(4096, 5 + static_cast<int64_t>(i) * 7));
    alone.push_back(reference.session());
  }
  // The second prompt comes behind a context whose last token, which was drawn, has not run.
  for (int turn = 0; turn < 2; ++turn) {
    std::vector<Answer> answers;
    for (size_t i = 0; i < lengths.size(); ++i) {
      RequestOptions options = scored(3, static_cast<int64_t>(i) * 4);
      if (lengths[i] > 60 && turn == 0) options.checkpoints = {17, 60};
      answers.push_back(*scheduler->submit(sessions[i], prompt(lengths[i]), std::move(options)));
    }
    for (size_t i = 0; i < lengths.size(); ++i) {
      SCOPED_TRACE(lengths[i]);
      const auto tokens = all(answers[i]);
      const Wanted wanted(alone[i], prompt(lengths[i]), i * 4);
      ASSERT_NE(answers[i].prompt_scores(), nullptr);
      wanted.check(*answers[i].prompt_scores());
      EXPECT_EQ(std::isnan(answers[i].prompt_scores()->logprobs[0]), turn == 0);
      auto generation = alone[i].generate(answer_of(3, 0.7).generate);
      EXPECT_EQ(tokens, all(*generation));
    }
  }
  EXPECT_LE(mock.engine->log_->most_rows, static_cast<size_t>(kMaxLogitRows));
}

TEST(SchedulerScores, AreThereOnceThePromptHasBeenReadAndOnlyIfAskedFor) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  Session session = mock.session(), other = mock.session();
  Answer waiting = [&] {
    Gate gate(mock, *scheduler);
    Answer answer = *scheduler->submit(session, prompt(50), scored(0, 1));
    EXPECT_EQ(answer.prompt_scores(), nullptr);
    gate.open();
    all(gate.answer());
    return answer;
  }();
  Answer plain = *scheduler->submit(other, prompt(50), answer_of(1));
  all(plain);
  EXPECT_EQ(plain.prompt_scores(), nullptr);
  EXPECT_TRUE(all(waiting).empty());
  ASSERT_NE(waiting.prompt_scores(), nullptr);
  EXPECT_EQ(waiting.prompt_scores()->logprobs.size(), 50u);
  Answer empty = *scheduler->submit(other, {}, scored(2, 1));
  EXPECT_EQ(all(empty).size(), 2u);
  ASSERT_NE(empty.prompt_scores(), nullptr);
  EXPECT_TRUE(empty.prompt_scores()->logprobs.empty());
}

TEST(SchedulerScores, LogitsThatAreNaNEndTheAnswerWithTheReason) {
  for (const int64_t place : {5, 37, 48}) {
    const Mock mock = paged_mock();
    auto scheduler = Scheduler::create(mock.model);
    mock.engine->log_->nan_at = place;
    Session session = mock.session();
    Answer answer = *scheduler->submit(session, prompt(50), scored(3, 1));
    const auto ended = answer.next();
    ASSERT_FALSE(ended);
    EXPECT_EQ(ended.error().code, ErrorCode::kEngineFailed);
    EXPECT_NE(ended.error().message.find("NaN"), std::string::npos) << ended.error().message;
    EXPECT_EQ(answer.prompt_scores(), nullptr);
    EXPECT_EQ(answer.progress().new_tokens, 0);
  }
  // The logits that a session holds tell of the first token.
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  mock.engine->log_->nan_at = 9;
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(10)));
  Answer answer = *scheduler->submit(session, prompt(1), scored(3, 1));
  EXPECT_EQ(answer.next().error().code, ErrorCode::kEngineFailed);
  EXPECT_EQ(session.position(), 10);
}

TEST(SchedulerScores, RefusesOtherNumbersOfLikeliestTokens) {
  const Mock mock = paged_mock();
  auto scheduler = Scheduler::create(mock.model);
  Session session = mock.session();
  for (const int64_t top : {int64_t{-1}, kMostLogprobs + 1}) {
    const auto refused = scheduler->submit(session, prompt(5), scored(1, top));
    EXPECT_EQ(refused.error().message, "prompt_logprobs is " + std::to_string(top) + ", expected 0 to 20");
  }
  EXPECT_TRUE(mock.steps().empty());
}

}  // namespace
}  // namespace sala::test
