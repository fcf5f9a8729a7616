#include "sala/prefiller.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "mock_engine.h"

namespace sala::test {
namespace {

constexpr Profile kPrefill = Profile::kPrefill;
constexpr Profile kDecode = Profile::kDecode;

TEST(Prefill, CutsThePromptIntoFullChunksAndARest) {
  const Mock mock;
  Session session = mock.session(100, 16);
  ASSERT_TRUE(session.prefill(prompt(37)));
  EXPECT_EQ(mock.steps(), (std::vector<Step>{{kPrefill, 16, 0, 37}, {kPrefill, 16, 16, 37}, {kPrefill, 5, 32, 37}}));
  EXPECT_EQ(session.position(), 37);
}

TEST(Prefill, TakesTheDecodeProfileForOneToken) {
  const Mock mock;
  Session session = mock.session(100, 16);
  ASSERT_TRUE(session.prefill(prompt(17)));
  EXPECT_EQ(mock.steps(), (std::vector<Step>{{kPrefill, 16, 0, 17}, {kDecode, 1, 16, 17}}));
}

TEST(Prefill, RunsNoEmptyChunkAfterAnExactMultiple) {
  const Mock mock;
  Session session = mock.session(100, 16);
  ASSERT_TRUE(session.prefill(prompt(32)));
  EXPECT_EQ(mock.steps().size(), 2u);
}

TEST(Prefill, CountsTheContextFromItsStartWhenAppending) {
  const Mock mock;
  Session session = mock.session(100, 16);
  ASSERT_TRUE(session.prefill(prompt(10)));
  ASSERT_TRUE(session.prefill(prompt(8)));
  EXPECT_EQ(mock.steps().back(), (Step{kPrefill, 8, 10, 18}));
}

TEST(Prefill, UsesTheGivenContextLength) {
  const Mock mock;
  Session session = mock.session(100, 16);
  ASSERT_TRUE(session.prefill(prompt(10), {.context_length = 3000, .on_progress = {}}));
  EXPECT_EQ(mock.steps().back().context_length, 3000);
}

TEST(Prefill, RefusesAContextLengthShorterThanTheContext) {
  const Mock mock;
  Session session = mock.session(100, 16);
  ASSERT_TRUE(session.prefill(prompt(10)));
  const auto outcome = session.prefill(prompt(5), {.context_length = 14, .on_progress = {}});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(session.position(), 10);
}

TEST(Prefill, RefusesAnEmptyPrompt) {
  const Mock mock;
  Session session = mock.session();
  const auto outcome = session.prefill({});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kEmptyPrompt);
}

TEST(Prefill, RefusesAPromptThatDoesNotFitWithItsNumbers) {
  const Mock mock;
  Session session = mock.session(20, 16);
  ASSERT_TRUE(session.prefill(prompt(7)));
  const auto outcome = session.prefill(prompt(14));
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kContextExceeded);
  for (const char* number : {"21", "20", "7"}) {
    EXPECT_NE(outcome.error().message.find(number), std::string::npos) << outcome.error().message;
  }
  EXPECT_EQ(session.position(), 7);
  EXPECT_TRUE(session.prefill(prompt(13)));
}

TEST(Prefill, RefusesTokensOutsideTheVocabularyBeforeRunning) {
  const Mock mock;
  Session session = mock.session();
  for (const int32_t wrong : {-1, static_cast<int32_t>(kVocabSize)}) {
    std::vector<int32_t> ids = prompt(40);
    ids[39] = wrong;
    const auto outcome = session.prefill(ids);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::kTokenOutOfRange);
  }
  EXPECT_TRUE(mock.steps().empty());
}

TEST(Prefill, StopsAtAChunkBorderAndGoesOnFromThere) {
  const Mock whole;
  Session uninterrupted = whole.session(100, 8);
  const auto ids = prompt(30);
  const std::vector<float> wanted = values(*uninterrupted.prefill(ids));

  const Mock mock;
  Session session = mock.session(100, 8);
  PrefillOptions options;
  options.on_progress = [](const PrefillProgress& progress) { return progress.tokens_done < 16; };
  const auto stopped = session.prefill(ids, options);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kStopped);
  ASSERT_EQ(session.position(), 16);
  EXPECT_EQ(values(*session.prefill(std::span(ids).subspan(16), {.context_length = 30, .on_progress = {}})), wanted);
}

TEST(Prefill, StopFromOutsideEndsIt) {
  const Mock mock;
  Session session = mock.session(100, 8);
  PrefillOptions options;
  options.on_progress = [&session](const PrefillProgress&) {
    session.stop();
    return true;
  };
  const auto stopped = session.prefill(prompt(30), options);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kStopped);
  EXPECT_EQ(session.position(), 8);
}

/// The position after a stop, which ends `session`'s next prefill.
int64_t stopped_at(Session& session) {
  const auto outcome = session.prefill(prompt(30));
  EXPECT_FALSE(outcome);
  if (!outcome) {
    EXPECT_EQ(outcome.error().code, ErrorCode::kStopped);
  }
  return session.position();
}

TEST(Stop, SentWhileNothingRunsEndsTheNextPrefillBeforeItsFirstChunk) {
  const Mock mock;
  Session session = mock.session(100, 8);
  session.stop();
  EXPECT_EQ(stopped_at(session), 0);
  EXPECT_TRUE(session.prefill(prompt(30))) << "it was used up";
}

TEST(Stop, SentAfterThePrefillerWasMadeCounts) {
  const Mock mock;
  Session session = mock.session(100, 8);
  auto prefiller = Prefiller::create(session, {});
  session.stop();
  EXPECT_EQ(prefiller->feed(prompt(60)).error().code, ErrorCode::kStopped);
  EXPECT_EQ(session.position(), 0);
}

TEST(Stop, IsNotForgottenByCallsThatAreRefused) {
  const Mock mock;
  Session session = mock.session(100, 8);
  session.stop();
  EXPECT_FALSE(session.prefill({}));
  EXPECT_FALSE(session.prefill(prompt(101)));
  EXPECT_FALSE(session.prefill(prompt(4), {.context_length = 2, .on_progress = {}}));
  EXPECT_FALSE(Prefiller::create(session, {}, -1));
  EXPECT_EQ(stopped_at(session), 0);
}

TEST(Stop, DuringTheLastChunkIsUsedUpByThePrefillThatFinishes) {
  const Mock mock;
  Session session = mock.session(100, 8);
  PrefillOptions options;
  options.on_progress = [&](const PrefillProgress& progress) {
    if (progress.tokens_done == 11) session.stop();
    return true;
  };
  ASSERT_TRUE(session.prefill(prompt(11), options));
  EXPECT_TRUE(session.prefill(prompt(20)));
}

TEST(Stop, ByTheCallbackOfTheLastChunkDoesNotReachTheNextPrefill) {
  const Mock mock;
  Session session = mock.session(100, 8);
  PrefillOptions options;
  options.on_progress = [](const PrefillProgress& progress) { return progress.tokens_done < 11; };
  ASSERT_TRUE(session.prefill(prompt(11), options));
  EXPECT_TRUE(session.prefill(prompt(20)));
}

TEST(Stop, WhileACallbackThrowsDoesNotReachTheNextPrefill) {
  const Mock mock;
  Session session = mock.session(100, 8);
  PrefillOptions options;
  options.on_progress = [&](const PrefillProgress&) -> bool {
    session.stop();
    throw std::runtime_error("from outside");
  };
  EXPECT_THROW(static_cast<void>(session.prefill(prompt(30), options)), std::runtime_error);
  EXPECT_TRUE(session.prefill(prompt(20)));
}

TEST(Stop, IsForgottenByAReset) {
  const Mock mock;
  Session session = mock.session(100, 8);
  session.stop();
  ASSERT_TRUE(session.reset());
  EXPECT_TRUE(session.prefill(prompt(20)));
}

TEST(Stop, IsLeftByDecodeAndGenerate) {
  const Mock mock;
  Session session = mock.session(100, 8);
  ASSERT_TRUE(session.prefill(prompt(9)));
  session.stop();
  ASSERT_TRUE(session.decode(5));
  ASSERT_TRUE(session.generate({.max_new_tokens = 1, .sampling = {}, .stop_tokens = {}})->next());
  EXPECT_EQ(stopped_at(session), 11);
}

TEST(Stop, KeepsThePendingTokenAndTellsWhereTheSessionStands) {
  const Mock mock;
  Session session = mock.session(100, 8);
  ASSERT_TRUE(session.prefill(prompt(9)));
  const auto drawn = session.sample({});
  ASSERT_TRUE(drawn);
  auto prefiller = Prefiller::create(session, {});
  ASSERT_TRUE(prefiller->feed(prompt(20)));
  session.stop();
  const auto stopped = prefiller->finish();
  ASSERT_FALSE(stopped);
  EXPECT_NE(stopped.error().message.find("the session holds 10"), std::string::npos) << stopped.error().message;
  const auto refused = prefiller->feed(prompt(3));
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("the session holds 10"), std::string::npos) << refused.error().message;
  EXPECT_FALSE(prefiller->finish());
  EXPECT_EQ(session.tokens().back(), *drawn);
  ASSERT_TRUE(session.prefill(prompt(20)));
  EXPECT_EQ(session.position(), 30);
}

TEST(Prefiller, RefusesCountsThatNoContextHas) {
  const Mock mock;
  Session session = mock.session(100, 8);
  ASSERT_TRUE(session.prefill(prompt(9)));
  constexpr int64_t kMost = INT32_MAX;
  for (const int64_t total : {int64_t{-1}, INT64_MIN, INT64_MAX, INT64_MAX - 8, kMost, kMost - 8}) {
    const auto outcome = Prefiller::create(session, {}, total);
    ASSERT_FALSE(outcome) << total;
    EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(outcome.error().message.find("tokens_total is " + std::to_string(total)), std::string::npos);
  }
  EXPECT_TRUE(Prefiller::create(session, {}, kMost - 9));
  for (const int64_t length : {int64_t{-1}, int64_t{0}, int64_t{8}, kMost + 1, INT64_MAX, INT64_MIN}) {
    const auto outcome = Prefiller::create(session, {.context_length = length, .on_progress = {}});
    ASSERT_FALSE(outcome) << length;
    EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(Prefill, ReportsProgressAfterEveryChunk) {
  const Mock mock;
  Session session = mock.session(100, 8);
  std::vector<int64_t> done;
  PrefillOptions options;
  options.on_progress = [&done](const PrefillProgress& progress) {
    EXPECT_EQ(progress.tokens_total, 20);
    done.push_back(progress.tokens_done);
    return true;
  };
  ASSERT_TRUE(session.prefill(prompt(20), options));
  EXPECT_EQ(done, (std::vector<int64_t>{8, 16, 20}));
}

/// Logits of `ids` fed in pieces of `piece` tokens.
std::vector<float> streamed(const Mock& mock, std::span<const int32_t> ids, size_t piece) {
  Session session = mock.session(400, 8);
  auto prefiller = Prefiller::create(session, {});
  for (; !ids.empty(); ids = ids.subspan(std::min(piece, ids.size()))) {
    EXPECT_TRUE(prefiller->feed(ids.first(std::min(piece, ids.size()))));
  }
  return values(*prefiller->finish());
}

TEST(Prefiller, RunsTheSameStepsHoweverThePromptIsCut) {
  for (const int64_t tokens : {int64_t{1}, kDenseLength - 1, kDenseLength, kDenseLength + 1, int64_t{333}}) {
    const auto ids = prompt(tokens);
    const Mock whole;
    Session session = whole.session(400, 8);
    const auto wanted = values(*session.prefill(ids));
    for (const size_t piece : {1u, 7u, 8u, 9u, 333u}) {
      const Mock mock;
      EXPECT_EQ(streamed(mock, ids, piece), wanted) << tokens << " in pieces of " << piece;
      ASSERT_EQ(mock.steps().size(), whole.steps().size());
      for (size_t i = 0; i < mock.steps().size(); ++i) {
        EXPECT_EQ(mock.steps()[i].tokens, whole.steps()[i].tokens);
        EXPECT_EQ(mock.steps()[i].context_length < kDenseLength, tokens < kDenseLength);
      }
    }
  }
}

TEST(Prefiller, HoldsTokensBackUntilTheContextIsKnownToBeSparse) {
  const auto ids = prompt(60);
  const Mock mock;
  Session session = mock.session(100, 8);
  auto prefiller = Prefiller::create(session, {});
  for (int64_t fed = 1; fed <= 60; ++fed) {
    ASSERT_TRUE(prefiller->feed(std::span(ids).subspan(static_cast<size_t>(fed) - 1, 1)));
    EXPECT_EQ(session.position(), fed < kDenseLength ? 0 : fed / 8 * 8);
  }
}

TEST(Prefiller, WithoutDenseContextsRunsEveryStepAsSoonAsItIsFull) {
  ModelConfig config = mock_config();
  config.dense_len = -1;
  const Mock mock(config);
  Session session = mock.session(100, 8);
  auto prefiller = Prefiller::create(session, {});
  ASSERT_TRUE(prefiller->feed(prompt(17)));
  EXPECT_EQ(session.position(), 16);
}

TEST(Prefiller, CountsWhatTheSessionHeldBefore) {
  const auto ids = prompt(90);
  for (const size_t before : {30u, 50u}) {
    const Mock mock;
    Session session = mock.session(100, 8), wanted = mock.session(100, 8);
    for (Session* each : {&session, &wanted}) {
      ASSERT_TRUE(each->prefill(std::span(ids).first(before)));
      ASSERT_TRUE(each->sample({}));
    }
    const auto rest = std::span(ids).subspan(before, 37);
    auto prefiller = Prefiller::create(session, {});
    for (size_t i = 0; i < rest.size(); ++i) ASSERT_TRUE(prefiller->feed(rest.subspan(i, 1)));
    EXPECT_EQ(values(*prefiller->finish()), values(*wanted.prefill(rest))) << before;
  }
}

TEST(Prefiller, HoldsNothingBackWhereTheLengthIsGiven) {
  const Mock mock;
  Session session = mock.session(100, 8);
  auto prefiller = Prefiller::create(session, {.context_length = 39, .on_progress = {}});
  ASSERT_TRUE(prefiller->feed(prompt(10)));
  EXPECT_EQ(mock.steps(), (std::vector<Step>{{kPrefill, 8, 0, 39}}));
}

TEST(Prefiller, DestroyedWhileTokensWaitLeavesTheSessionAsItWas) {
  const Mock mock;
  Session session = mock.session(100, 8);
  ASSERT_TRUE(Prefiller::create(session, {})->feed(prompt(30)));
  EXPECT_EQ(session.position(), 0);
  EXPECT_TRUE(session.prefill(prompt(5)));
}

TEST(Prefiller, TakesNothingMoreAfterItWasStopped) {
  const auto ids = prompt(60);
  const Mock mock;
  Session session = mock.session(100, 8);
  const auto wanted = values(*mock.session(100, 8).prefill(ids));
  PrefillOptions options;
  options.on_progress = [](const PrefillProgress& progress) { return progress.tokens_done < 16; };
  auto prefiller = Prefiller::create(session, options);
  EXPECT_EQ(prefiller->feed(ids).error().code, ErrorCode::kStopped);
  EXPECT_EQ(session.position(), 16);
  EXPECT_EQ(prefiller->feed(prompt(1)).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(prefiller->finish().error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(values(*session.prefill(std::span(ids).subspan(16))), wanted);
}

TEST(Prefiller, TakesNothingMoreAfterItsCallbackThrew) {
  const Mock mock;
  Session session = mock.session(100, 8);
  PrefillOptions options;
  options.on_progress = [](const PrefillProgress&) -> bool { throw std::runtime_error("from outside"); };
  auto prefiller = Prefiller::create(session, options);
  EXPECT_THROW(static_cast<void>(prefiller->feed(prompt(60))), std::runtime_error);
  EXPECT_EQ(session.position(), 8);
  const auto outcome = prefiller->finish();
  ASSERT_FALSE(outcome) << "52 tokens of the prompt did not run";
  EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
}

TEST(Prefiller, WithoutTokensLeavesThePendingOne) {
  const Mock mock;
  Session session = mock.session(100, 1);
  ASSERT_TRUE(session.prefill(prompt(kDenseLength)));
  ASSERT_TRUE(session.sample({}));
  const auto outcome = session.prefill({});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kEmptyPrompt);
  EXPECT_TRUE(session.logits().empty());
  EXPECT_EQ(mock.steps().size(), static_cast<size_t>(kDenseLength));
}

TEST(Prefiller, WithoutTokensIsAnEmptyPrompt) {
  const Mock mock;
  Session session = mock.session();
  auto prefiller = Prefiller::create(session, {});
  ASSERT_TRUE(prefiller->feed({}));
  const auto outcome = prefiller->finish();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kEmptyPrompt);
}

TEST(Prefiller, RefusesWhatDoesNotFitAndGoesOn) {
  const Mock mock;
  Session session = mock.session(20, 8);
  auto prefiller = Prefiller::create(session, {});
  ASSERT_TRUE(prefiller->feed(prompt(13)));
  const auto outcome = prefiller->feed(prompt(8));
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kContextExceeded);
  ASSERT_TRUE(prefiller->feed(prompt(7)));
  ASSERT_TRUE(prefiller->finish());
  EXPECT_EQ(session.position(), 20);
}

TEST(Prefiller, RefusesTheStreamThatOutgrowsItsContextLength) {
  const Mock mock;
  Session session = mock.session(100, 8);
  auto prefiller = Prefiller::create(session, {.context_length = 10, .on_progress = {}});
  ASSERT_TRUE(prefiller->feed(prompt(10)));
  const auto outcome = prefiller->feed(prompt(1));
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
}

TEST(Prefiller, NoticesAnotherContextOfTheSameLength) {
  const Mock mock;
  Session session = mock.session(20, 8);
  ASSERT_TRUE(session.prefill(prompt(5)));
  ASSERT_TRUE(session.sample({}));
  auto prefiller = Prefiller::create(session, {});
  ASSERT_TRUE(prefiller->feed(prompt(14)));
  // As many tokens, of which none is pending: with those that wait they are more than the caches hold.
  ASSERT_TRUE(session.reset());
  ASSERT_TRUE(session.prefill(prompt(6)));
  const auto outcome = prefiller->finish();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(session.position(), 6);
}

TEST(Prefiller, NoticesThatItsSessionWasUsedMeanwhile) {
  const Mock mock;
  Session session = mock.session();
  auto prefiller = Prefiller::create(session, {});
  ASSERT_TRUE(prefiller->feed(prompt(3)));
  ASSERT_TRUE(session.decode(5));
  const auto outcome = prefiller->finish();
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace sala::test
