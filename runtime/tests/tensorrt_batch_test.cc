// Sessions that draw together on TensorRT: what they compute, what is set up for them, and what is refused.

#include <algorithm>
#include <optional>

#include "session_schedule.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

constexpr int64_t kMaxBatch = 8;

GenerateOptions greedy(int64_t tokens) { return {tokens, {}, std::vector<int32_t>{}}; }

Expected<BatchGeneration> generate(const Model& model, std::vector<Session>& sessions, int64_t tokens) {
  std::vector<Session*> members;
  for (Session& session : sessions) members.push_back(&session);
  return model.generate_batch(members, std::vector<GenerateOptions>(members.size(), greedy(tokens)));
}

std::vector<Session> sessions_of(const Model& model, const std::vector<int64_t>& lengths, int64_t max_context = 600) {
  std::vector<Session> made;
  for (const int64_t length : lengths) {
    auto session = model.create_session({max_context, kChunk});
    EXPECT_TRUE(session) << session.error().message;
    made.push_back(*std::move(session));
    EXPECT_TRUE(made.back().prefill(prompt(length)));
  }
  return made;
}

class TensorRtBatch : public TensorRt {
 protected:
  void SetUp() override {
    TensorRt::SetUp();
    load_again({kMaxBatch});
  }

  void TearDown() override {
    model_.reset();
    TensorRt::TearDown();
  }

  void load_again(const FakeSizes& sizes) {
    model_.reset();
    bundle_.emplace(test_tensors(), sizes);
    auto model = load(*bundle_);
    ASSERT_TRUE(model) << model.error().message;
    model_.emplace(*std::move(model));
  }

  /// That each session draws the tokens, and then has the logits, of the mock alone.
  void expect_those_of_each_alone(const Model& model, const std::vector<int64_t>& lengths, int64_t tokens) const {
    auto members = sessions_of(model, lengths);
    std::vector<std::vector<int32_t>> found(members.size());
    {
      auto batch = generate(model, members, tokens);
      ASSERT_TRUE(batch) << batch.error().message;
      while (!batch->has_finished()) {
        const auto drawn = batch->next();
        ASSERT_TRUE(drawn) << drawn.error().message;
        for (size_t i = 0; i < found.size(); ++i) {
          if ((*drawn)[i]) found[i].push_back(*(*drawn)[i]);
        }
      }
    }
    const Mock mock = bundle_->mock();
    for (size_t i = 0; i < members.size(); ++i) {
      Session same = mock.session();
      ASSERT_TRUE(same.prefill(prompt(lengths[i])));
      auto alone = same.generate(greedy(tokens));
      std::vector<int32_t> expected;
      while (const auto token = *alone->next()) expected.push_back(*token);
      EXPECT_EQ(found[i], expected) << i;
      EXPECT_EQ(values(*members[i].prefill(prompt(3))), values(*same.prefill(prompt(3)))) << i;
    }
  }

  std::optional<FakeBundle> bundle_;
  std::optional<Model> model_;
};

TEST_F(TensorRtBatch, EachSessionDrawsWhatItDrawsAlone) {
  expect_those_of_each_alone(*model_, {30, 1, 45, 39, 200}, 12);
  expect_those_of_each_alone(*model_, {17}, 5);
}

TEST_F(TensorRtBatch, MayBeLargerThanAChunk) {
  load_again({kChunk + 8});
  expect_those_of_each_alone(*model_, std::vector<int64_t>(kChunk + 4, 20), 3);
}

TEST_F(TensorRtBatch, EveryScheduleGivesTheLogitsOfEachSessionAlone) {
  const Mock mock = bundle_->mock();
  for (const int64_t page_bytes : {4096, 65536}) {
    model_.reset();
    cuda().page_bytes = page_bytes;
    load_again({kMaxBatch});
    for (unsigned seed = 0; seed < 3; ++seed) Schedule(*model_, mock, seed).run(60);
  }
}

TEST_F(TensorRtBatch, CapturesOneGraphForEachSizeBehindItsFirstStep) {
  auto members = sessions_of(*model_, {30, 20, 45});
  take_events();
  const int graphs = cuda().graphs;
  auto batch = generate(*model_, members, 9);
  ASSERT_TRUE(batch->next());
  EXPECT_TRUE(take_events().empty()) << "all began with logits: no step has run";
  const int launches = cuda().graph_launches;
  for (const std::string size : {"3", "2"}) {
    ASSERT_TRUE(batch->next());
    const std::string step = "enqueue profile 1 batch " + size + " tokens 1";
    EXPECT_EQ(take_events(), (std::vector<std::string>{
                                 "specialization 1", "runtime cache", "context specialization 1 cached 1", "profile 1",
                                 "device memory 8192", step, "is stream capturable", step + " captured"}))
        << "one context, and nothing before the first step";
    ASSERT_TRUE(batch->next());
    ASSERT_TRUE(batch->next());
    EXPECT_TRUE(take_events().empty()) << "the graph is replayed";
    ASSERT_TRUE(batch->end(0));
  }
  EXPECT_EQ(cuda().graph_launches, launches + 4);
  EXPECT_EQ(cuda().graphs, graphs + 2);
}

TEST_F(TensorRtBatch, RunsEveryStepThroughTensorRtWithoutAGraph) {
  LoadOptions options = TensorRt::options();
  options.tensorrt.decode_graph = false;
  const auto model = Model::load(bundle_->write(), options);
  expect_those_of_each_alone(*model, {30, 20}, 6);
  EXPECT_EQ(cuda().graph_launches, 0);
}

TEST_F(TensorRtBatch, TakesMemoryForItsStatesUntilItEnds) {
  auto members = sessions_of(*model_, {30, 20, 45});
  const auto blocks = cuda().device_blocks;
  const int64_t before = model_->cache_bytes();
  {
    auto batch = generate(*model_, members, 9);
    EXPECT_EQ(model_->cache_bytes(), before + cuda().page_bytes);
    while (!batch->has_finished()) ASSERT_TRUE(batch->next());
    EXPECT_EQ(cuda().device_blocks, blocks) << "activations and step buffers are those of the sessions";
  }
  EXPECT_EQ(model_->cache_bytes(), before);
}

TEST_F(TensorRtBatch, LeavesSessionsAsTheyWereWhereNoContextCanBeMade) {
  auto members = sessions_of(*model_, {30, 20});
  auto batch = generate(*model_, members, 9);
  ASSERT_TRUE(batch->next());
  tensorrt_fake().context_error = "Cuda Runtime (cudaError 2: out of memory)";
  EXPECT_EQ(*batch->next(), std::vector<std::optional<int32_t>>(2));
  tensorrt_fake().context_error.clear();
  EXPECT_TRUE(batch->has_finished());
  for (size_t i = 0; i < members.size(); ++i) {
    expect_error(batch->status(i).error(), ErrorCode::kOutOfMemory, {"could not make a context"});
    EXPECT_TRUE(members[i].prefill(prompt(3)));
  }
}

TEST_F(TensorRtBatch, StepThatCannotBeCapturedIsAnErrorThatNamesTheWayOut) {
  auto members = sessions_of(*model_, {30, 20});
  auto batch = generate(*model_, members, 9);
  ASSERT_TRUE(batch->next());
  cuda().instantiate = CUDA_ERROR_OUT_OF_MEMORY;
  const auto failed = batch->next();
  ASSERT_FALSE(failed);
  expect_error(failed.error(), ErrorCode::kEngineFailed, {"make a graph", "decode_graph = false"});
  EXPECT_EQ(members[1].decode(5).error().code, ErrorCode::kSessionPoisoned);
}

TEST_F(TensorRtBatch, LargerThanTheEngineServesIsRefused) {
  auto members = sessions_of(*model_, std::vector<int64_t>(kMaxBatch + 1, 3));
  expect_error(generate(*model_, members, 1).error(), ErrorCode::kInvalidArgument,
               {"9 sessions", "tensorrt", "at most 8", "--max-batch N"});
  EXPECT_TRUE(members[0].decode(5)) << "as it was";
}

TEST_F(TensorRtBatch, SessionHoldsWhatTheProfileHolds) {
  EXPECT_TRUE(model_->create_session({262144, kChunk}));
  expect_error(model_->create_session({262145, kChunk}).error(), ErrorCode::kInvalidArgument,
               {"max_context is 262145", "1 to 262144"});
  auto members = sessions_of(*model_, {30, 20}, 262144);
  EXPECT_TRUE(generate(*model_, members, 2)->next());
}

TEST_F(TensorRtBatch, NeedsCachesThatGrow) {
  LoadOptions options = TensorRt::options();
  options.tensorrt.allocator = DeviceAllocator{
      [](int64_t bytes) -> void* {
        CUdeviceptr data = 0;
        cuda_function<CUresult(CUdeviceptr*, size_t)>("cuMemAlloc_v2")(&data, static_cast<size_t>(bytes));
        return reinterpret_cast<void*>(data);
      },
      [](void* data, int64_t) {
        cuda_function<CUresult(CUdeviceptr)>("cuMemFree_v2")(reinterpret_cast<CUdeviceptr>(data));
      }};
  const auto model = Model::load(bundle_->write(), options);
  auto members = sessions_of(*model, {30, 20});
  expect_error(generate(*model, members, 1).error(), ErrorCode::kInvalidArgument,
               {"do not grow by pages", "without an allocator of your own"});
}

TEST_F(TensorRtBatch, CachesThatEndWithinAPageServeTheirSessionsAlone) {
  const auto expect_refusal = [&](const std::string& page) {
    auto members = sessions_of(*model_, {30, 20});
    expect_error(
        generate(*model_, members, 1).error(), ErrorCode::kInvalidArgument,
        {"past_key_values.1.", "max_context 600", "a page of " + page + " bytes", "one session after the other"});
    const Mock mock = bundle_->mock();
    Session same = mock.session();
    ASSERT_TRUE(same.prefill(prompt(30)));
    EXPECT_EQ(values(*members[0].prefill(prompt(9))), values(*same.prefill(prompt(9))));
  };
  load_again({kMaxBatch, kCapacity, 2047, 511, kMaxBatch});  // as builds were before sessions drew together
  expect_refusal("65536");
  model_.reset();
  cuda().page_bytes = int64_t{4} << 20;  // of another GPU than there is
  load_again({kMaxBatch});
  expect_refusal("4194304");
}

TEST_F(TensorRtBatch, ProfilesWithoutABatchOrBeyondMemoryAreDamaged) {
  FakeBundle without(test_tensors(), {kMaxBatch});
  without.manifest["engine"]["profiles"]["decode"].erase("batch");
  expect_error(load(without).error(), ErrorCode::kBundleDamaged, {"another shape in decode"});
  FakeBundle beyond(test_tensors(), {1, kCapacity, 2047, 511, INT32_MAX, INT32_MAX});
  expect_error(load(beyond).error(), ErrorCode::kBundleDamaged, {"exceed memory", "build the bundle again"});
}

}  // namespace
}  // namespace sala::test
