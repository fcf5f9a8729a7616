// What sessions compute on TensorRT: the same as on any other engine, however the prompt is cut.

#include <filesystem>
#include <thread>

#include "session_schedule.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

class TensorRtSession : public TensorRt {
 protected:
  void SetUp() override {
    TensorRt::SetUp();
    bundle_.emplace();
    auto model = load(*bundle_);
    ASSERT_TRUE(model) << model.error().message;
    model_.emplace(*std::move(model));
  }

  void TearDown() override {
    model_.reset();
    TensorRt::TearDown();
  }

  Session session(int64_t max_context = 1200, int64_t chunk_tokens = kChunk) const {
    auto session = model_->create_session({max_context, chunk_tokens});
    EXPECT_TRUE(session) << session.error().message;
    return *std::move(session);
  }

  std::optional<FakeBundle> bundle_;
  std::optional<Model> model_;
};

TEST_F(TensorRtSession, GivesTheLogitsOfTheMockForEveryChunkSize) {
  const auto ids = prompt(333);
  const Mock mock = bundle_->mock();
  const std::vector<float> wanted = values(*mock.session(400, 333).prefill(ids));
  for (const int64_t chunk : {1, 2, 7, 15, 16}) {
    Session session = TensorRtSession::session(400, chunk);
    const auto logits = session.prefill(ids);
    ASSERT_TRUE(logits) << logits.error().message;
    EXPECT_EQ(values(*logits), wanted) << chunk;
  }
}

TEST_F(TensorRtSession, ReplaysOneGraphAtEveryPosition) {
  const auto ids = prompt(150);
  const Mock mock = bundle_->mock();
  Session reference = mock.session(200);
  Session session = TensorRtSession::session(200);
  ASSERT_TRUE(reference.prefill(std::span(ids).first(5)));
  ASSERT_TRUE(session.prefill(std::span(ids).first(5)));
  take_events();
  const int graphs = cuda().graphs;
  for (size_t i = 5; i < ids.size(); ++i) {
    EXPECT_EQ(values(*session.decode(ids[i])), values(*reference.decode(ids[i]))) << i;
  }
  EXPECT_EQ(cuda().graph_launches, 145);
  EXPECT_EQ(cuda().graphs, graphs);
  EXPECT_TRUE(take_events().empty()) << "TensorRT was not called again";
}

TEST_F(TensorRtSession, GivesTheLogitsOfSeveralTokensBesideAGraph) {
  const auto ids = prompt(70);
  const Mock mock = bundle_->mock();
  Session first = session(200), second = session(200, 5);
  const int64_t device_bytes = cuda().used_bytes(), pinned_bytes = cuda().pinned_bytes();
  for (Session* each : {&first, &second}) {
    ASSERT_TRUE(each->prefill(std::span(ids).first(9)));
    EXPECT_EQ(cuda().pinned_bytes(), pinned_bytes) << "nobody has asked for more";
  }
  Session reference = mock.session(200, 1);
  ASSERT_TRUE(reference.prefill(std::span(ids).first(9)));
  for (size_t from = 9; from < 69; from += 20) {
    std::vector<std::vector<float>> wanted;
    for (size_t i = from; i < from + 19; ++i) {
      const auto context = static_cast<int64_t>(from + 19);
      wanted.push_back(values(*reference.prefill({&ids[i], 1}, {.context_length = context, .on_progress = {}})));
    }
    const std::vector<float> next = values(*reference.decode(ids[from + 19]));
    for (Session* each : {&first, &second}) {
      PrefillOptions options{.context_length = {}, .on_progress = {}};
      for (int64_t token = 0; token < 19; token += each == &first ? 1 : 2) options.logit_tokens.push_back(token);
      options.on_logits = [&](std::span<const int64_t> tokens, std::span<const float> logits) {
        for (size_t i = 0; i < tokens.size(); ++i) {
          EXPECT_EQ(values(logits.subspan(i * kVocabSize, kVocabSize)), wanted[static_cast<size_t>(tokens[i])]);
        }
      };
      ASSERT_TRUE(each->prefill(std::span(ids).subspan(from, 19), options));
      EXPECT_EQ(values(each->logits()), wanted.back());
      EXPECT_EQ(values(*each->decode(ids[from + 19])), next) << "the graph's addresses are as they were";
    }
  }
  const int64_t row_bytes = kMaxLogitRows * kVocabSize * static_cast<int64_t>(sizeof(float));
  EXPECT_EQ(cuda().pinned_bytes(), pinned_bytes + row_bytes);
  EXPECT_GE(cuda().used_bytes(), device_bytes + row_bytes);
}

TEST_F(TensorRtSession, StaysUsableWithoutMemoryForLogitsOfSeveralTokens) {
  const auto ids = prompt(30);
  Session session = TensorRtSession::session(200);
  PrefillOptions options{.context_length = {}, .on_progress = {}};
  options.logit_tokens = {0, 1, 2};
  options.on_logits = [](std::span<const int64_t>, std::span<const float>) { FAIL() << "there was no memory"; };
  cuda().pins_before_failure = 0;
  EXPECT_EQ(session.prefill(ids, options).error().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(session.position(), 0);
  cuda().pins_before_failure = -1;
  const Mock mock = bundle_->mock();
  EXPECT_EQ(values(*session.prefill(ids)), values(*mock.session(200).prefill(ids)));
}

TEST_F(TensorRtSession, RunsEveryStepThroughTensorRtWithoutAGraph) {
  LoadOptions options = TensorRt::options();
  options.tensorrt.decode_graph = false;
  const auto model = Model::load(bundle_->write(), options);
  auto session = model->create_session({.max_context = 100, .chunk_tokens = {}});
  ASSERT_TRUE(session) << session.error().message;
  take_events();
  const Mock mock = bundle_->mock();
  Session reference = mock.session(100);
  for (const int32_t id : prompt(20)) EXPECT_EQ(values(*session->decode(id)), values(*reference.decode(id)));
  EXPECT_EQ(cuda().graph_launches, 0);
  EXPECT_EQ(take_events().size(), 20u);
}

TEST_F(TensorRtSession, AlternatesBetweenPromptsAndGeneration) {
  const Mock mock = bundle_->mock();
  Session reference = mock.session(500, 16);
  Session session = TensorRtSession::session(500, 16);
  for (const int64_t tokens : {1, 37, 2, 1, 1, 16, 17, 40}) {
    EXPECT_EQ(values(*session.prefill(prompt(tokens))), values(*reference.prefill(prompt(tokens)))) << tokens;
    EXPECT_EQ(*session.sample({}), *reference.sample({}));
  }
}

TEST_F(TensorRtSession, StatesPassToAndFromAnotherEngineOfItsPrecision) {
  const auto ids = prompt(300);
  const auto path = std::filesystem::path(testing::TempDir()) / "between_engines.state";
  const Mock mock = bundle_->mock("bf16");
  const std::vector<float> wanted = values(*mock.session(300, 300).prefill(ids));
  for (const size_t cut : {1u, 17u, 150u}) {
    Session session = TensorRtSession::session(301, 7);
    ASSERT_TRUE(session.prefill(std::span(ids).first(cut), {.context_length = 300, .on_progress = {}}));
    ASSERT_TRUE(session.save(path));
    auto elsewhere = mock.model.restore(path, {.max_context = 512, .chunk_tokens = 64});
    ASSERT_TRUE(elsewhere) << elsewhere.error().message;
    EXPECT_EQ(values(*elsewhere->prefill(std::span(ids).subspan(cut))), wanted) << cut;
    elsewhere = mock.model.create_session({.max_context = 512, .chunk_tokens = 64});
    ASSERT_TRUE(elsewhere->prefill(std::span(ids).first(cut), {.context_length = 300, .on_progress = {}}));
    ASSERT_TRUE(elsewhere->save(path));
    auto back = model_->restore(path, {.max_context = 300, .chunk_tokens = 16});
    ASSERT_TRUE(back) << back.error().message;
    EXPECT_EQ(values(*back->prefill(std::span(ids).subspan(cut))), wanted) << cut;
  }
  const Mock other = bundle_->mock("fp32");
  EXPECT_EQ(other.model.restore(path).error().code, ErrorCode::kStatePrecision);
}

TEST_F(TensorRtSession, ServesContextsShorterThanTheSmallestCache) {
  const Mock mock = bundle_->mock();
  for (const int64_t max_context : {int64_t{1}, int64_t{3}, kLeastCapacity}) {
    Session session = TensorRtSession::session(max_context);
    EXPECT_EQ(session.max_context(), max_context);
    const auto ids = prompt(max_context);
    EXPECT_EQ(values(*session.prefill(ids)), values(*mock.session().prefill(ids))) << max_context;
    EXPECT_EQ(session.decode(3).error().code, ErrorCode::kContextExceeded);
  }
}

TEST_F(TensorRtSession, EveryScheduleGivesTheLogitsOfEachSessionAlone) {
  const Mock mock = bundle_->mock();
  model_.reset();
  for (const int64_t page_bytes : {4096, 65536}) {
    cuda().page_bytes = page_bytes;
    const auto model = load(*bundle_);
    ASSERT_TRUE(model) << model.error().message;
    for (unsigned seed = 0; seed < 3; ++seed) Schedule(*model, mock, seed).run(60);
  }
}

TEST_F(TensorRtSession, SessionsInThreadsTakeTurns) {
  const Mock mock = bundle_->mock();
  Session book = session();
  ASSERT_TRUE(book.prefill(prompt(100)));
  std::vector<Session> forks;
  for (int i = 0; i < 4; ++i) forks.push_back(*book.fork());
  std::vector<std::vector<float>> found(forks.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < forks.size(); ++i) {
    threads.emplace_back([&, i] {
      for (int32_t token = 3; token < 30; ++token) found[i] = values(*forks[i].decode(token + static_cast<int32_t>(i)));
    });
  }
  for (std::thread& each : threads) each.join();
  for (size_t i = 0; i < forks.size(); ++i) {
    Session same = mock.session();
    ASSERT_TRUE(same.prefill(prompt(100)));
    for (int32_t token = 3; token < 30; ++token) ASSERT_TRUE(same.decode(token + static_cast<int32_t>(i)));
    EXPECT_EQ(found[i], values(same.logits())) << i;
  }
}

TEST_F(TensorRtSession, SessionsDoNotTouchEachOther) {
  const Mock mock = bundle_->mock();
  const auto ids = prompt(90);
  const std::vector<float> wanted = values(*mock.session().prefill(ids));
  Session first = session(), second = session();
  ASSERT_TRUE(first.prefill(std::span(ids).first(50), {.context_length = 90, .on_progress = {}}));
  ASSERT_TRUE(second.prefill(prompt(33)));
  EXPECT_EQ(values(*first.prefill(std::span(ids).subspan(50))), wanted);
}

TEST_F(TensorRtSession, IsPoisonedByAFailedStepUntilReset) {
  const Mock mock = bundle_->mock();
  const auto ids = prompt(60);
  Session session = TensorRtSession::session();
  ASSERT_TRUE(session.prefill(std::span(ids).first(20)));
  tensorrt_fake().fail_enqueue_after = 1;  // the first chunk of two
  const auto failed = session.prefill(std::span(ids).subspan(20));
  ASSERT_FALSE(failed);
  expect_error(failed.error(), ErrorCode::kEngineFailed, {"could not run engine/engine.plan", "illegal memory access"});
  EXPECT_EQ(session.decode(5).error().code, ErrorCode::kSessionPoisoned);
  tensorrt_fake().fail_enqueue_after = -1;
  ASSERT_TRUE(session.reset());
  EXPECT_EQ(values(*session.prefill(ids)), values(*mock.session().prefill(ids)));
}

TEST_F(TensorRtSession, DriverThatFailsInAStepPoisonsTheSession) {
  Session session = TensorRtSession::session();
  ASSERT_TRUE(session.prefill(prompt(20)));
  cuda().synchronize = CUDA_ERROR_ILLEGAL_ADDRESS;
  const auto failed = session.decode(4);
  ASSERT_FALSE(failed);
  expect_error(failed.error(), ErrorCode::kEngineFailed, {"CUDA could not finish a step", "CUDA error 700"});
  cuda().synchronize = CUDA_SUCCESS;
  EXPECT_EQ(session.decode(5).error().code, ErrorCode::kSessionPoisoned);
}

TEST_F(TensorRtSession, OutlivesItsModel) {
  Session session = TensorRtSession::session();
  model_.reset();
  const Mock mock = bundle_->mock();
  EXPECT_EQ(values(*session.prefill(prompt(50))), values(*mock.session().prefill(prompt(50))));
}

}  // namespace
}  // namespace sala::test
