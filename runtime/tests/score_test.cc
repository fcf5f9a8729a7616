// How probable the model finds the tokens of a text, against sums over logits of tokens that are read one by one.

#include <gtest/gtest.h>

#include <cmath>

#include "c_api/handles.h"
#include "c_errors.h"
#include "wanted_scores.h"

namespace sala::test {
namespace {

TEST(Score, IsTheLogProbabilityOfEachTokenHoweverTheTextIsCut) {
  for (const int64_t length : {int64_t{1}, int64_t{2}, kDenseLength - 1, kDenseLength, int64_t{75}}) {
    for (const int64_t chunk : {1, 5, 16, 100}) {
      for (const int64_t top : {0, 1, 20}) {
        const Mock mock, reference;
        Session session = mock.session(200, chunk), alone = reference.session(200, 1);
        const auto ids = prompt(length);
        const Wanted wanted(alone, ids, static_cast<size_t>(top));
        const auto scores = session.score(ids, {.top = top});
        ASSERT_TRUE(scores) << scores.error().message;
        EXPECT_TRUE(std::isnan(scores->logprobs[0]));
        wanted.check(*scores);
        EXPECT_EQ(values(session.logits()), values(alone.logits()));
        EXPECT_LE(mock.engine->log_->most_rows, static_cast<size_t>(kMaxLogitRows));
      }
    }
  }
}

TEST(Score, GoesOnBehindAContextAndAPendingToken) {
  const auto ids = prompt(50);
  for (const bool is_pending : {false, true}) {
    for (const int64_t chunk : {1, 7, 64}) {
      const Mock mock;
      Session session = mock.session(200, chunk);
      ASSERT_TRUE(session.prefill(prompt(11)));
      if (is_pending) ASSERT_TRUE(session.sample({}));
      Session alone = *session.fork();
      const Wanted wanted(alone, ids, 3);
      const auto scores = session.score(ids, {.top = 3});
      ASSERT_TRUE(scores) << scores.error().message;
      EXPECT_FALSE(std::isnan(scores->logprobs[0]));
      wanted.check(*scores);
    }
  }
}

TEST(Score, RefusesWhatPrefillRefusesAndOtherNumbersOfLikeliestTokens) {
  const Mock mock;
  Session session = mock.session(20, 16);
  EXPECT_EQ(session.score({}).error().code, ErrorCode::kEmptyPrompt);
  EXPECT_EQ(session.score(prompt(21)).error().code, ErrorCode::kContextExceeded);
  EXPECT_EQ(session.score(std::vector<int32_t>{3, kVocabSize}).error().code, ErrorCode::kTokenOutOfRange);
  EXPECT_EQ(session.score(prompt(5), {.top = 0, .context_length = 4}).error().code, ErrorCode::kInvalidArgument);
  for (const int64_t top : {int64_t{-1}, kMostLogprobs + 1}) {
    const auto refused = session.score(prompt(5), {.top = top});
    EXPECT_EQ(refused.error().message, "top is " + std::to_string(top) + ", expected 0 to 20");
  }
  EXPECT_TRUE(mock.steps().empty());
}

TEST(Score, StopsBetweenStepsAndTheSessionGoesOn) {
  const Mock mock;
  Session session = mock.session(100, 16);
  ScoreOptions options;
  options.on_progress = [](const PrefillProgress& progress) { return progress.tokens_done < 12; };
  EXPECT_EQ(session.score(prompt(60), options).error().code, ErrorCode::kStopped);
  EXPECT_EQ(session.position(), 12);
  EXPECT_TRUE(session.score(prompt(8)));
}

TEST(Score, OfTheCInterfaceIsThatOfTheCppInterface) {
  const Mock mock;
  sala_model model(mock.model);
  sala_session_options sizes = SALA_SESSION_OPTIONS_INIT;
  sizes.max_context = 100;
  sizes.chunk_tokens = 16;
  sala_session* in_c = nullptr;
  ASSERT_EQ(code_of(sala_session_create(&model, &sizes, &in_c)), 0);
  const auto ids = prompt(30);
  const std::vector<int64_t> wanted = {0, 3, 17, 28};
  std::vector<float> found, expected;
  sala_prefill_options options = SALA_PREFILL_OPTIONS_INIT;
  options.logit_tokens = wanted.data();
  options.logit_token_count = wanted.size();
  options.user_data = &found;
  options.on_logits = [](const int64_t*, size_t count, const float* logits, size_t vocab_size, void* to) {
    static_cast<std::vector<float>*>(to)->insert(static_cast<std::vector<float>*>(to)->end(), logits,
                                                 logits + count * vocab_size);
  };
  ASSERT_EQ(code_of(sala_session_prefill(in_c, ids.data(), 30, &options)), 0);
  Session session = mock.session(100, 16);
  ASSERT_TRUE(session.prefill(ids, {{}, {}, wanted, [&](std::span<const int64_t>, std::span<const float> logits) {
                                      expected.insert(expected.end(), logits.begin(), logits.end());
                                    }}));
  EXPECT_EQ(found, expected);
  const TokenScores scores = *session.score(ids, {.top = 2});
  std::vector<double> logprobs(30), top_logprobs(60);
  std::vector<int32_t> top_ids(60);
  sala_score_options scoring = SALA_SCORE_OPTIONS_INIT;
  scoring.top = 2;
  ASSERT_EQ(
      code_of(sala_session_score(in_c, ids.data(), 30, &scoring, logprobs.data(), top_ids.data(), top_logprobs.data())),
      0);
  EXPECT_EQ(logprobs, scores.logprobs);
  EXPECT_EQ(top_ids, scores.top_ids);
  EXPECT_EQ(top_logprobs, scores.top_logprobs);
  EXPECT_EQ(code_of(sala_session_score(in_c, ids.data(), 30, &scoring, logprobs.data(), nullptr, nullptr)),
            SALA_ERROR_INVALID_ARGUMENT);
  options.logit_tokens = nullptr;
  EXPECT_EQ(code_of(sala_session_prefill(in_c, ids.data(), 30, &options)), SALA_ERROR_INVALID_ARGUMENT);
  sala_session_destroy(in_c);
}

}  // namespace
}  // namespace sala::test
