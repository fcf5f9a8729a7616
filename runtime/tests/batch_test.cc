// Sessions that draw together: what is refused, and what becomes of them when memory or the engine fails. That their
// tokens are those of each session alone is for session_fork_test.cc.

#include <optional>

#include "mock_engine.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

GenerateOptions greedy(int64_t tokens) { return {tokens, {}, std::vector<int32_t>{}}; }

/// A mock with caches in pages of the fake GPU, which the CPU can read.
class Batch : public TensorRt {
 protected:
  void SetUp() override {
    TensorRt::SetUp();
    cuda().page_bytes = 4096;
    mock_.emplace();
    mock_->engine->paged_memory_ = *cuda_memory(0);
  }
  void TearDown() override {
    mock_.reset();
    EXPECT_TRUE(cuda().pages.empty());
    TensorRt::TearDown();
  }

  std::vector<Session> sessions(const std::vector<int64_t>& lengths) const {
    std::vector<Session> made;
    for (const int64_t length : lengths) {
      made.push_back(mock_->session());
      EXPECT_TRUE(made.back().prefill(prompt(length)));
    }
    return made;
  }

  Expected<BatchGeneration> generate(std::vector<Session>& sessions, int64_t tokens) const {
    std::vector<Session*> members;
    for (Session& session : sessions) members.push_back(&session);
    return mock_->model.generate_batch(members, std::vector<GenerateOptions>(members.size(), greedy(tokens)));
  }

  std::optional<Mock> mock_;
};

TEST_F(Batch, SessionForWhichThereIsNoMemoryLeavesAsItWasAndTheOthersGoOn) {
  auto members = sessions({300, 20, 45});
  auto batch = generate(members, 60);
  ASSERT_TRUE(batch) << batch.error().message;
  std::vector<std::vector<int32_t>> found(members.size());
  for (int i = 0; !batch->has_finished(); ++i) {
    if (i == 1) cuda().total_bytes = cuda().used_bytes();
    const auto tokens = batch->next();
    ASSERT_TRUE(tokens) << tokens.error().message;
    for (size_t k = 0; k < found.size(); ++k) {
      if ((*tokens)[k]) found[k].push_back(*(*tokens)[k]);
    }
  }
  EXPECT_EQ(batch->status(0).error().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(batch->finish_reason(0), FinishReason::kNone);
  EXPECT_EQ(found[0].size(), 42u) << "the row of token 341 lies on two pages";
  for (const size_t k : {1, 2}) {
    EXPECT_TRUE(batch->status(k));
    EXPECT_EQ(batch->finish_reason(k), FinishReason::kMaxNewTokens);
  }
  cuda().total_bytes = int64_t{1} << 30;
  auto rest = members[0].generate(greedy(60 - 42));
  while (const auto token = *rest->next()) found[0].push_back(*token);
  const Mock reference;
  for (size_t k = 0; k < found.size(); ++k) {
    Session same = reference.session();
    ASSERT_TRUE(same.prefill(prompt(std::vector<int64_t>{300, 20, 45}[k])));
    auto alone = same.generate(greedy(60));
    std::vector<int32_t> expected;
    while (const auto token = *alone->next()) expected.push_back(*token);
    EXPECT_EQ(found[k], expected);
  }
}

TEST_F(Batch, SessionsLeaveAsTheyWereWhereTheEngineHasNoRoomForSoMany) {
  auto members = sessions({30, 20});
  auto batch = generate(members, 9);
  const auto drawn = batch->next();
  mock_->engine->log_->no_room_for = 2;
  EXPECT_EQ(*batch->next(), std::vector<std::optional<int32_t>>(2));
  EXPECT_TRUE(batch->has_finished());
  const Mock reference;
  for (size_t k = 0; k < members.size(); ++k) {
    EXPECT_EQ(batch->status(k).error().code, ErrorCode::kOutOfMemory);
    Session same = reference.session();
    ASSERT_TRUE(same.prefill(prompt(k == 0 ? 30 : 20)));
    ASSERT_EQ(*same.sample({}), *(*drawn)[k]);
    EXPECT_EQ(values(*members[k].prefill(prompt(3))), values(*same.prefill(prompt(3))));
  }
}

TEST_F(Batch, SessionThatCannotMoveIntoAGapIsLostAndNoOther) {
  auto members = sessions({30, 20, 45});
  auto batch = generate(members, 9);
  ASSERT_TRUE(batch->next());
  cuda().page_calls_before_failure = 0;  // the next mapping, which is of the last session in the place of the first
  EXPECT_TRUE(batch->end(0));
  cuda().page_calls_before_failure = -1;
  EXPECT_TRUE(batch->status(0)) << "it had left";
  EXPECT_TRUE(members[0].prefill(prompt(2)));
  EXPECT_TRUE(batch->has_finished());
  for (const size_t lost : {1, 2}) {
    EXPECT_EQ(batch->status(lost).error().code, ErrorCode::kEngineFailed);
    EXPECT_EQ(members[lost].prefill(prompt(2)).error().code, ErrorCode::kSessionPoisoned);
    ASSERT_TRUE(members[lost].reset());
    EXPECT_TRUE(members[lost].prefill(prompt(2)));
  }
  EXPECT_EQ(*batch->next(), std::vector<std::optional<int32_t>>(3));
}

TEST_F(Batch, SessionOfAnotherBatchIsRefusedAndStaysWhereItIs) {
  auto members = sessions({30, 20});
  auto batch = generate(members, 3);
  std::vector<Session*> one{&members[0]};
  EXPECT_EQ(mock_->model.generate_batch(one, std::vector{greedy(1)}).error().code, ErrorCode::kInvalidArgument);
  while (!batch->has_finished()) ASSERT_TRUE(batch->next());
  EXPECT_EQ(batch->finish_reason(0), FinishReason::kMaxNewTokens);
}

TEST_F(Batch, StepThatFailsPoisonsTheSessionsThatHadNotFinished) {
  auto members = sessions({30, 20, 45});
  std::vector<Session*> pointers{&members[0], &members[1], &members[2]};
  const std::vector<GenerateOptions> options{greedy(9), greedy(1), greedy(9)};
  auto batch = mock_->model.generate_batch(pointers, options);
  ASSERT_TRUE(batch->next());
  mock_->engine->log_->fail_at = mock_->steps().size();
  EXPECT_EQ(batch->next().error().code, ErrorCode::kEngineFailed);
  EXPECT_TRUE(batch->has_finished());
  for (const size_t lost : {0, 2}) {
    EXPECT_EQ(batch->status(lost).error().code, ErrorCode::kEngineFailed);
    EXPECT_EQ(members[lost].prefill(prompt(2)).error().code, ErrorCode::kSessionPoisoned);
    ASSERT_TRUE(members[lost].reset());
    EXPECT_TRUE(members[lost].prefill(prompt(2)));
  }
  EXPECT_EQ(batch->finish_reason(1), FinishReason::kMaxNewTokens);
  EXPECT_TRUE(members[1].prefill(prompt(2)));
}

TEST_F(Batch, OneStepServesAllThatGoOn) {
  auto members = sessions({30, 20, 45, 50});
  auto batch = generate(members, 3);
  const size_t before = mock_->steps().size();
  ASSERT_TRUE(batch->end(2));
  ASSERT_TRUE(batch->end(2)) << "again";
  while (!batch->has_finished()) ASSERT_TRUE(batch->next());
  ASSERT_EQ(mock_->steps().size(), before + 2);
  EXPECT_EQ(mock_->steps().back().batch, 3);
  EXPECT_EQ(batch->finish_reason(2), FinishReason::kNone);
}

TEST_F(Batch, OfAnySessionsThatCannotStepTogetherIsRefused) {
  auto members = sessions({5, 6});
  const auto refusal = [&](std::vector<Session*> chosen, size_t options) {
    return mock_->model.generate_batch(chosen, std::vector<GenerateOptions>(options, greedy(1))).error();
  };
  expect_error(refusal({}, 0), ErrorCode::kInvalidArgument, {"0 sessions", "at least one"});
  expect_error(refusal({&members[0]}, 2), ErrorCode::kInvalidArgument, {"1 sessions and 2 options"});
  expect_error(refusal({&members[0], &members[1], &members[0]}, 3), ErrorCode::kInvalidArgument,
               {"session 2", "twice", "fork"});
  const Mock other;
  Session foreign = other.session();
  expect_error(refusal({&members[0], &foreign}, 2), ErrorCode::kInvalidArgument, {"session 1", "another model"});
  Session longer = mock_->session(8192);
  ASSERT_TRUE(longer.prefill(prompt(5)));
  expect_error(refusal({&members[0], &longer}, 2), ErrorCode::kInvalidArgument, {"max_context 8192", "4096"});
  Session empty = mock_->session();
  expect_error(refusal({&members[0], &empty}, 2), ErrorCode::kNoLogits, {"empty"});
  auto many = sessions(std::vector<int64_t>(9, 3));
  expect_error(generate(many, 1).error(), ErrorCode::kInvalidArgument, {"9 sessions", "mock", "at most 8"});
  EXPECT_EQ(values(*members[0].decode(5)).size(), static_cast<size_t>(kVocabSize)) << "as it was";
}

TEST_F(Batch, NeedsMemoryThatGrowsByPages) {
  const Mock mock;
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(5)));
  std::vector<Session*> one{&session};
  expect_error(mock.model.generate_batch(one, std::vector{greedy(1)}).error(), ErrorCode::kInvalidArgument,
               {"do not grow by pages", "one session after the other"});
}

TEST_F(TensorRt, ServesOneSessionAStep) {
  FakeBundle bundle;
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  Session session = *model->create_session({.max_context = 64, .chunk_tokens = {}});
  ASSERT_TRUE(session.prefill(prompt(5)));
  std::vector<Session*> one{&session};
  expect_error(model->generate_batch(one, std::vector{greedy(1)}).error(), ErrorCode::kInvalidArgument,
               {"tensorrt", "serves one session a step", "build the bundle again", "--max-batch N"});
}

}  // namespace
}  // namespace sala::test
