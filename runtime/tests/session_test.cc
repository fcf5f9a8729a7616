#include "sala/session.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <numeric>
#include <vector>

#include "mock_engine.h"

namespace sala::test {
namespace {

std::vector<int32_t> generated(Session& session, GenerateOptions options) {
  auto generation = session.generate(std::move(options));
  std::vector<int32_t> tokens;
  while (true) {
    const auto token = generation->next();
    if (!token || !*token) return tokens;
    tokens.push_back(**token);
  }
}

GenerateOptions sampled(int64_t max_new_tokens) {
  GenerateOptions options;
  options.max_new_tokens = max_new_tokens;
  options.sampling = {.temperature = 900.0, .top_k = 0, .top_p = 1.0, .repetition_penalty = 1.0, .seed = 5};
  options.stop_tokens = std::vector<int32_t>();
  return options;
}

TEST(Session, GivesTheSameLogitsForEveryChunkSize) {
  const auto ids = prompt(1100);
  std::vector<float> wanted;
  for (const int64_t chunk : {1100, 1, 7, 64, 1000}) {
    const Mock mock;
    Session session = mock.session(1200, chunk);
    const std::vector<float> logits = values(*session.prefill(ids));
    if (wanted.empty()) wanted = logits;
    EXPECT_EQ(logits, wanted) << chunk;
  }
}

TEST(Session, MayBeSavedAndRestoredBetweenChunks) {
  const auto ids = prompt(300);
  const auto path = std::filesystem::path(testing::TempDir()) / "between_chunks.state";
  const Mock mock;
  Session uninterrupted = mock.session(300, 64);
  const std::vector<float> wanted = values(*uninterrupted.prefill(ids));
  for (const size_t cut : {1u, 3u, 15u, 16u, 17u, 150u}) {
    Session session = mock.session(301, 7);
    ASSERT_TRUE(session.prefill(std::span(ids).first(cut), {.context_length = 300, .on_progress = {}}));
    ASSERT_TRUE(session.save(path));
    auto restored = mock.model.restore(path, {.max_context = 512, .chunk_tokens = 64});
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(values(*restored->prefill(std::span(ids).subspan(cut))), wanted) << cut;
  }
}

TEST(Session, DecodeEqualsPrefillOfOneToken) {
  const Mock mock;
  Session a = mock.session(), b = mock.session();
  ASSERT_TRUE(a.prefill(prompt(20)));
  ASSERT_TRUE(b.prefill(prompt(20)));
  EXPECT_EQ(values(*a.decode(9)), values(*b.prefill(std::vector<int32_t>{9})));
}

TEST(Session, AppendsEveryGeneratedTokenToItsContext) {
  const Mock mock;
  Session session = mock.session();
  const auto ids = prompt(20);
  ASSERT_TRUE(session.prefill(ids));
  const auto tokens = generated(session, sampled(6));
  ASSERT_EQ(tokens.size(), 6u);
  EXPECT_EQ(session.position(), 26);
  EXPECT_TRUE(session.logits().empty()) << "the last token has not run";
  const std::vector<float> next_turn = values(*session.prefill(prompt(5)));

  std::vector<int32_t> all = ids;
  all.insert(all.end(), tokens.begin(), tokens.end());
  for (const int32_t id : prompt(5)) all.push_back(id);
  EXPECT_EQ(std::vector<int32_t>(session.tokens().begin(), session.tokens().end()), all);
  Session other = mock.session();
  ASSERT_TRUE(other.prefill(std::span(all).first(20)));
  for (size_t i = 20; i < 25; ++i) ASSERT_TRUE(other.decode(all[i]));
  EXPECT_EQ(values(*other.prefill(std::span(all).subspan(25))), next_turn);
}

TEST(Session, ContinuesTheSameTextHoweverGenerationIsCut) {
  const Mock mock;
  const auto path = std::filesystem::path(testing::TempDir()) / "cut.state";
  Session whole = mock.session();
  ASSERT_TRUE(whole.prefill(prompt(30)));
  const auto wanted = generated(whole, sampled(20));

  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(30)));
  auto tokens = generated(session, sampled(8));
  ASSERT_TRUE(session.save(path));
  auto restored = mock.model.restore(path);
  ASSERT_TRUE(restored) << restored.error().message;
  for (const int32_t token : generated(*restored, sampled(12))) tokens.push_back(token);
  EXPECT_EQ(tokens, wanted);
}

TEST(Session, RunsGeneratedTokensAsDecodeStepsOfTheContextSoFar) {
  const Mock mock;
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(kDenseLength - 2)));
  mock.steps().clear();
  generated(session, sampled(4));
  const int64_t n = kDenseLength;
  EXPECT_EQ(mock.steps(), (std::vector<Step>{{Profile::kDecode, 1, n - 2, n - 1},
                                             {Profile::kDecode, 1, n - 1, n},
                                             {Profile::kDecode, 1, n, n + 1}}));
}

TEST(Generation, EndsAtAStopTokenWhichJoinsTheContext) {
  const Mock mock;
  Session probe = mock.session(), session = mock.session();
  ASSERT_TRUE(probe.prefill(prompt(20)));
  ASSERT_TRUE(session.prefill(prompt(20)));
  const auto tokens = generated(probe, sampled(5));
  GenerateOptions options = sampled(100);
  options.stop_tokens = {tokens[4]};
  auto generation = session.generate(options);
  int64_t count = 0;
  for (auto token = generation->next(); token && *token; token = generation->next())
    EXPECT_EQ(**token, tokens[count++]);
  EXPECT_EQ(generation->finish_reason(), FinishReason::kStopToken);
  EXPECT_EQ(session.tokens().back(), tokens[4]);
  EXPECT_EQ(session.position(), 20 + count + 1);
}

TEST(Generation, StopsAtTheModelsEosTokensByDefault) {
  Mock probe_mock;
  Session probe = probe_mock.session();
  ASSERT_TRUE(probe.prefill(prompt(20)));
  ModelConfig config = mock_config();
  config.eos_token_ids = {generated(probe, sampled(1))[0]};
  const Mock mock(config);
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(20)));
  GenerateOptions options = sampled(5);
  options.stop_tokens.reset();
  EXPECT_TRUE(generated(session, options).empty());
}

TEST(Generation, EndsWhereTheContextIsFull) {
  const Mock mock;
  Session session = mock.session(23, 16);
  ASSERT_TRUE(session.prefill(prompt(20)));
  auto generation = session.generate(sampled(100));
  int64_t count = 0;
  for (auto token = generation->next(); token && *token; token = generation->next()) ++count;
  EXPECT_EQ(count, 3);
  EXPECT_EQ(generation->finish_reason(), FinishReason::kMaxContext);
  EXPECT_FALSE(session.prefill(prompt(1)));
}

std::vector<int32_t> drawn(Session& session, const GenerateOptions& options) {
  std::vector<int32_t> tokens;
  auto generation = session.generate(options);
  for (auto token = generation->next(); token && *token; token = generation->next()) tokens.push_back(**token);
  return tokens;
}

/// Every token once, so that a repetition penalty brings all logits of the mock near each other.
std::vector<int32_t> all_tokens() {
  std::vector<int32_t> ids(kVocabSize);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

GenerateOptions unpenalised(int64_t tokens) {
  GenerateOptions options = sampled(tokens);
  options.sampling.temperature = 2.0;
  options.sampling.repetition_penalty = 100.0;
  return options;
}

GenerateOptions penalised(int64_t tokens) {
  GenerateOptions options = unpenalised(tokens);
  options.sampling.frequency_penalty = 2.0;
  options.sampling.presence_penalty = 2.0;
  options.sampling.logit_bias = {{7, 3.0}};
  return options;
}

TEST(Generation, PenaltiesSeeTheSameAnswerHoweverItIsCut) {
  const Mock mock;
  const auto path = std::filesystem::path(testing::TempDir()) / "penalties.state";
  const auto begun = [&] {
    Session session = mock.session();
    EXPECT_TRUE(session.prefill(all_tokens()));
    return session;
  };
  Session whole = begun(), cut = begun(), plain = begun();
  const auto expected = drawn(whole, penalised(24));
  ASSERT_NE(expected, drawn(plain, unpenalised(24))) << "the penalties must matter";

  auto tokens = drawn(cut, penalised(5));
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(cut.save(path));
    cut = *mock.model.restore(path);
    for (const int32_t token : drawn(cut, penalised(4))) tokens.push_back(token);
  }
  // Drawn elsewhere, for example from the same logits on another machine.
  ASSERT_TRUE(cut.decode(expected[tokens.size()]));
  tokens.push_back(expected[tokens.size()]);
  for (const int32_t token : drawn(cut, penalised(2))) tokens.push_back(token);
  EXPECT_EQ(tokens, expected);
  std::filesystem::remove(path);
}

TEST(Generation, APrefillBeginsAnotherAnswer) {
  const Mock mock;
  Session session = mock.session(), other = mock.session();
  ASSERT_TRUE(session.prefill(all_tokens()));
  drawn(session, penalised(40));
  ASSERT_TRUE(session.prefill(prompt(3)));
  const std::vector<int32_t> context(session.tokens().begin(), session.tokens().end());
  ASSERT_TRUE(other.prefill(context));
  EXPECT_EQ(drawn(session, penalised(40)), drawn(other, penalised(40)));
}

TEST(Generation, NeedsAPrompt) {
  const Mock mock;
  Session session = mock.session();
  const auto generation = session.generate({});
  ASSERT_FALSE(generation);
  EXPECT_EQ(generation.error().code, ErrorCode::kNoLogits);
}

TEST(Generation, RefusesWrongOptions) {
  const Mock mock;
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(3)));
  GenerateOptions options = sampled(-1);
  EXPECT_EQ(session.generate(options).error().code, ErrorCode::kInvalidArgument);
  options = sampled(1);
  options.sampling.top_p = 0.0;
  EXPECT_EQ(session.generate(options).error().code, ErrorCode::kInvalidArgument);
}

TEST(Session, SampleNeedsLogitsEachTime) {
  const Mock mock;
  Session session = mock.session();
  EXPECT_EQ(session.sample({}).error().code, ErrorCode::kNoLogits);
  ASSERT_TRUE(session.prefill(prompt(3)));
  ASSERT_TRUE(session.sample({}));
  EXPECT_EQ(session.sample({}).error().code, ErrorCode::kNoLogits);
}

TEST(Session, IsPoisonedByAStepThatThrows) {
  const Mock mock;
  Session session = mock.session(100, 8);
  mock.engine->log_->throw_at = 1;
  EXPECT_THROW(static_cast<void>(session.prefill(prompt(20))), std::bad_alloc);
  EXPECT_EQ(session.prefill(prompt(1)).error().code, ErrorCode::kSessionPoisoned);
}

TEST(Session, IsPoisonedByAFailedStepUntilReset) {
  const Mock mock;
  Session session = mock.session(100, 8);
  const std::vector<float> wanted = values(*session.prefill(prompt(20)));
  mock.engine->log_->fail_at = mock.steps().size() + 1;
  const auto failed = session.prefill(prompt(20));
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kEngineFailed);

  EXPECT_EQ(session.prefill(prompt(1)).error().code, ErrorCode::kSessionPoisoned);
  EXPECT_EQ(session.decode(1).error().code, ErrorCode::kSessionPoisoned);
  EXPECT_EQ(session.sample({}).error().code, ErrorCode::kSessionPoisoned);
  EXPECT_EQ(session.generate({}).error().code, ErrorCode::kSessionPoisoned);
  EXPECT_EQ(session.save(std::filesystem::path(testing::TempDir()) / "p").error().code, ErrorCode::kSessionPoisoned);

  ASSERT_TRUE(session.reset());
  EXPECT_EQ(session.position(), 0);
  EXPECT_TRUE(session.logits().empty());
  EXPECT_EQ(values(*session.prefill(prompt(20))), wanted);
}

TEST(Session, MayMoveWhileAGenerationIsOpen) {
  const Mock mock;
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(3)));
  auto generation = session.generate(sampled(2));
  Session moved = std::move(session);
  ASSERT_TRUE(generation->next());
  EXPECT_EQ(moved.position(), 4);
}

TEST(Session, OutlivesItsModel) {
  std::optional<Mock> mock(std::in_place);
  Session session = mock->session();
  mock.reset();
  EXPECT_TRUE(session.prefill(prompt(3)));
}

TEST(Model, RefusesSizesThatTheEngineDoesNotServe) {
  const Mock mock;
  for (const SessionOptions& options :
       {SessionOptions{0, {}}, SessionOptions{(1 << 20) + 1, {}}, SessionOptions{10, 0}, SessionOptions{10, 2049}}) {
    EXPECT_EQ(mock.model.create_session(options).error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(Model, ReportsMemoryThatIsNotThereAndGivesBackTheRest) {
  const Mock mock;
  mock.engine->memory_.limit_bytes_ = 10000;
  EXPECT_EQ(mock.model.create_session({.max_context = 1000, .chunk_tokens = {}}).error().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(mock.engine->memory_.live_bytes_, 0);
}

TEST(Model, RefusesAnEngineOfOtherTensors) {
  const auto code = [](auto change) {
    const auto engine = std::make_shared<MockEngine>();
    change(*engine);
    const auto model = Model::create(mock_config(), engine);
    return model ? std::optional<ErrorCode>() : model.error().code;
  };
  EXPECT_EQ(code([](MockEngine&) {}), std::nullopt);
  EXPECT_EQ(code([](MockEngine& e) { e.inputs_[0].dtype = DType::kInt32; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](MockEngine& e) { e.inputs_[3].shape[2].value = 4; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](MockEngine& e) { e.inputs_[4].shape[0].symbol = "batch"; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](MockEngine& e) { e.outputs_[0].shape[1].value = 3; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](MockEngine& e) { e.outputs_.pop_back(); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](MockEngine& e) { e.inputs_[6].shape[2].symbol = "rows"; }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code([](MockEngine& e) { e.inputs_.push_back({"mask", DType::kInt64, {}}); }), ErrorCode::kInvalidArgument);
}

TEST(Model, ChecksOptionsOfGenerationAsASessionDoes) {
  const Mock mock;
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(5)));
  const std::pair<GenerateOptions, const char*> wrong[] = {
      {{.max_new_tokens = -1, .sampling = {}, .stop_tokens = {}}, "max_new_tokens is -1"},
      {{.max_new_tokens = 1, .sampling = {}, .stop_tokens = {{3, -1}}}, "stop_tokens has -1"},
      {{.max_new_tokens = 1, .sampling = {}, .stop_tokens = {{static_cast<int32_t>(kVocabSize)}}}, "stop_tokens has"},
      {{.max_new_tokens = 1, .sampling = {.temperature = -1}, .stop_tokens = {}}, "temperature is -1"},
      {{.max_new_tokens = 1, .sampling = {.logit_bias = {{kVocabSize, 1.0}}}, .stop_tokens = {}}, "logit_bias has"},
  };
  for (const auto& [options, message] : wrong) {
    for (const Status& outcome : {mock.model.check(options), Status(session.generate(options).error())}) {
      ASSERT_FALSE(outcome);
      EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
      EXPECT_NE(outcome.error().message.find(message), std::string::npos) << outcome.error().message;
    }
  }
  EXPECT_TRUE(mock.model.check({.max_new_tokens = INT64_MAX, .sampling = {}, .stop_tokens = {{0, 1}}}));
  EXPECT_EQ(mock.model.create_session({0, 16}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(mock.model.create_session({INT64_MAX, 16}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(mock.model.create_session({64, -1}).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace sala::test
