// How a session is set up on TensorRT: contexts, memory, the captured step, the runtime cache.

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "sala/prefiller.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

class TensorRtEngine : public TensorRt {
 protected:
  static std::string content(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  static int64_t count(const std::vector<std::string>& events, const std::string& event) {
    return std::count(events.begin(), events.end(), event);
  }
};

TEST_F(TensorRtEngine, HasAContextForEachProfileOnOneActivationBuffer) {
  FakeBundle bundle;
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  take_events();
  const auto session = model->create_session({.max_context = 64, .chunk_tokens = {}});
  ASSERT_TRUE(session) << session.error().message;
  const auto events = take_events();
  EXPECT_EQ(count(events, "profile 0"), 1);
  EXPECT_EQ(count(events, "profile 1"), 1);
  EXPECT_EQ(count(events, "device memory 8192"), 2) << "the larger of both profiles, once";
  EXPECT_EQ(std::count_if(cuda().device_blocks.begin(), cuda().device_blocks.end(),
                          [](const auto& block) { return block.second == 8192; }),
            1);
}

TEST_F(TensorRtEngine, DecodeIsCompiledForItsShapesBeforeItIsCaptured) {
  FakeBundle bundle;
  const auto model = load(bundle);
  take_events();
  ASSERT_TRUE(model->create_session());
  const auto events = take_events();
  EXPECT_EQ(count(events, "context specialization 1 cached 1"), 1);
  EXPECT_EQ(count(events, "context specialization 0 cached 1"), 1);
  EXPECT_EQ(count(events, "is stream capturable"), 1);
  std::vector<std::string> enqueued;
  std::copy_if(events.begin(), events.end(), std::back_inserter(enqueued),
               [](const std::string& event) { return event.starts_with("enqueue"); });
  EXPECT_EQ(enqueued, (std::vector<std::string>{"enqueue profile 1 batch 1 tokens 1",
                                                "enqueue profile 1 batch 1 tokens 1 captured"}));
}

TEST_F(TensorRtEngine, TensorRtProperHasNoRuntimeCache) {
  for (const auto& [version, text] :
       {std::pair(std::array{10, 14, 1, 48}, "10.14.1.48"), std::pair(std::array{11, 4, 0, 106}, "11.4.0.106")}) {
    tensorrt_fake() = FakeTensorRt();
    tensorrt_fake().flavour = "tensorrt";
    std::copy(version.begin(), version.end(), tensorrt_fake().version);
    FakeBundle bundle;
    bundle.manifest["engine"]["tensorrt_flavour"] = "tensorrt";
    bundle.manifest["engine"]["tensorrt_version"] = text;
    const auto model = load(bundle);
    ASSERT_TRUE(model) << model.error().message;
    auto session = model->create_session({.max_context = 64, .chunk_tokens = {}});
    ASSERT_TRUE(session) << session.error().message;
    EXPECT_EQ(count(take_events(), "context"), 2);
    const auto logits = session->prefill(prompt(40));
    ASSERT_TRUE(logits) << logits.error().message;
    const Mock mock = bundle.mock();
    EXPECT_EQ(values(*logits), values(*mock.session().prefill(prompt(40))));
    EXPECT_FALSE(std::filesystem::exists(bundle.runtime_cache()));
  }
}

TEST_F(TensorRtEngine, RuntimeCacheLiesBesideTheBundleAndIsReadAgain) {
  FakeBundle bundle;
  {
    const auto model = load(bundle);
    ASSERT_TRUE(model->create_session());
    EXPECT_EQ(content(bundle.runtime_cache()), "compiled 2");
    take_events();
    ASSERT_TRUE(model->create_session());
    EXPECT_EQ(content(bundle.runtime_cache()), "compiled 4") << "what was added is written";
    EXPECT_EQ(count(take_events(), "cache read"), 0);
  }
  const auto model = load(bundle);
  ASSERT_TRUE(model->create_session());
  EXPECT_EQ(count(take_events(), "cache read"), 1);
  EXPECT_EQ(content(bundle.runtime_cache()), "compiled 6");
  for (const auto& entry : std::filesystem::directory_iterator(bundle.runtime_cache().parent_path())) {
    EXPECT_NE(entry.path().extension(), ".partial");
  }
}

TEST_F(TensorRtEngine, RuntimeCacheOfAnotherTensorRtIsWrittenAnew) {
  FakeBundle bundle;
  bundle.write();
  std::ofstream(bundle.runtime_cache()) << "somebody else's";
  const auto model = load(bundle);
  ASSERT_TRUE(model->create_session());
  EXPECT_EQ(content(bundle.runtime_cache()), "compiled 2");
}

TEST_F(TensorRtEngine, RuntimeCacheThatMayNotBeWrittenIsLeftAlone) {
  if (getuid() != 0) GTEST_SKIP() << "only root can change who it is";
  FakeBundle bundle;
  const std::filesystem::path path = bundle.write();
  std::ofstream(bundle.runtime_cache()) << "of root";
  ASSERT_EQ(chmod(bundle.runtime_cache().c_str(), 0644), 0);
  ASSERT_EQ(chmod(path.parent_path().c_str(), 0777), 0);
  ASSERT_EQ(setresuid(1234, 1234, 0), 0);
  std::string problem;
  if (const auto model = Model::load(path, TensorRtEngine::options()); !model) {
    problem = model.error().message;
  } else if (const auto session = model->create_session(); !session) {
    problem = session.error().message;
  }
  ASSERT_EQ(setresuid(0, 0, 0), 0);
  EXPECT_EQ(problem, "");
  EXPECT_EQ(content(bundle.runtime_cache()), "of root");
}

TEST_F(TensorRtEngine, RuntimeCacheMayBeGivenAndMustThenBeWritable) {
  FakeBundle bundle;
  LoadOptions options = TensorRtEngine::options();
  options.tensorrt.runtime_cache = bundle.runtime_cache().parent_path() / "given";
  {
    const auto model = Model::load(bundle.write(), options);
    ASSERT_TRUE(model->create_session());
  }
  EXPECT_EQ(content(options.tensorrt.runtime_cache), "compiled 2");
  EXPECT_FALSE(std::filesystem::exists(bundle.runtime_cache()));
  options.tensorrt.runtime_cache = "no/such/folder/cache";
  const auto model = Model::load(bundle.write(), options);
  const auto session = model->create_session();
  ASSERT_FALSE(session);
  expect_error(session.error(), ErrorCode::kEngineFailed, {"no/such/folder/cache"});
}

TEST_F(TensorRtEngine, PromptThatDoesNotFitIsRefusedWholeAndNamesWhatDoes) {
  FakeBundle bundle;
  cuda().page_bytes = 4096;
  cuda().total_bytes = int64_t{1} << 20;
  const auto model = load(bundle);
  ASSERT_TRUE(model) << model.error().message;
  auto session = model->create_session({.max_context = 4000});
  ASSERT_TRUE(session) << session.error().message << ": a session takes the memory of what it holds";
  ASSERT_TRUE(session->prefill(prompt(10)));
  cuda().total_bytes = cuda().used_bytes() + 100'000;
  const auto refused = session->prefill(prompt(3900));
  ASSERT_FALSE(refused);
  expect_error(refused.error(), ErrorCode::kOutOfMemory, {"of 3900 tokens take", "are free", "enough for "});
  EXPECT_EQ(session->position(), 10);
  const std::string& message = refused.error().message;
  const int64_t fits = std::stoll(message.substr(message.find("enough for ") + 11));
  EXPECT_GT(fits, 1000);
  EXPECT_FALSE(session->prefill(prompt(fits + 200)));
  EXPECT_TRUE(session->prefill(prompt(fits)));
}

TEST_F(TensorRtEngine, MemoryThatEndsWithinAStreamLeavesWhatHasRun) {
  FakeBundle bundle;
  const Mock mock = bundle.mock();
  cuda().page_bytes = 4096;
  const auto model = load(bundle);
  auto session = model->create_session({.max_context = 4000});
  auto other = model->create_session({.max_context = 4000});
  ASSERT_TRUE(session);
  ASSERT_TRUE(other);
  ASSERT_TRUE(other->prefill(prompt(50)));
  cuda().total_bytes = cuda().used_bytes() + 60'000;
  auto prefiller = Prefiller::create(*session, {});
  const auto ids = prompt(3000);
  const Status fed = prefiller->feed(ids);
  ASSERT_FALSE(fed);
  expect_error(fed.error(), ErrorCode::kOutOfMemory, {"no room for", "are free", "end other sessions"});
  const int64_t held = session->position();
  EXPECT_GT(held, 100);
  cuda().total_bytes += int64_t{1} << 20;
  // The one that asked pays, and both go on.
  Session same = mock.session();
  ASSERT_TRUE(
      same.prefill(std::span(ids).first(static_cast<size_t>(held)), {.context_length = 3000, .on_progress = {}}));
  EXPECT_EQ(values(*session->prefill(prompt(20))), values(*same.prefill(prompt(20))));
  Session another = mock.session();
  ASSERT_TRUE(another.prefill(prompt(50)));
  EXPECT_EQ(values(*other->decode(7)), values(*another.decode(7)));
}

TEST_F(TensorRtEngine, ForkThatFindsNoMemoryForItsStatesStaysAsItIs) {
  FakeBundle bundle;
  const Mock mock = bundle.mock();
  const auto model = load(bundle);
  auto session = model->create_session({.max_context = 500, .chunk_tokens = 16});
  ASSERT_TRUE(session->prefill(prompt(100)));
  auto fork = session->fork();
  ASSERT_TRUE(fork) << fork.error().message;
  cuda().total_bytes = cuda().used_bytes();
  EXPECT_EQ(fork->rewind(50).error().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(fork->decode(7).error().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(fork->position(), 100);
  cuda().total_bytes += int64_t{1} << 20;
  const int64_t reached = *fork->rewind(50);
  Session same = mock.session();
  const auto ids = prompt(100);
  ASSERT_TRUE(
      same.prefill(std::span(ids).first(static_cast<size_t>(reached)), {.context_length = 100, .on_progress = {}}));
  EXPECT_EQ(values(*fork->decode(7)), values(*same.decode(7)));
}

TEST_F(TensorRtEngine, MemoryOfTheCallerIsTakenWholeAndForksCopy) {
  FakeBundle bundle;
  const Mock mock = bundle.mock();
  LoadOptions options = TensorRt::options();
  int64_t taken = 0;
  options.tensorrt.allocator = DeviceAllocator{
      [&](int64_t bytes) -> void* {
        CUdeviceptr data = 0;
        taken += bytes;
        return cuda_function<CUresult(CUdeviceptr*, size_t)>("cuMemAlloc_v2")(&data, static_cast<size_t>(bytes)) == 0
                   ? reinterpret_cast<void*>(data)
                   : nullptr;
      },
      [&](void* data, int64_t bytes) {
        taken -= bytes;
        cuda_function<CUresult(CUdeviceptr)>("cuMemFree_v2")(reinterpret_cast<CUdeviceptr>(data));
      }};
  const auto model = Model::load(bundle.write(), options);
  ASSERT_TRUE(model) << model.error().message;
  auto session = model->create_session({.max_context = 500});
  ASSERT_TRUE(session->prefill(prompt(100)));
  EXPECT_TRUE(cuda().pages.empty());
  const int64_t before = taken;
  auto fork = session->fork();
  ASSERT_TRUE(fork) << fork.error().message;
  EXPECT_GT(taken - before, 500 * 2 * 24) << "a cache of keys and one of values";
  Session same = mock.session();
  ASSERT_TRUE(same.prefill(prompt(100)));
  const std::vector<float> wanted = values(*same.decode(9));
  EXPECT_EQ(values(*fork->decode(9)), wanted);
  EXPECT_EQ(values(*session->decode(9)), wanted);
}

TEST_F(TensorRtEngine, GpuThatCannotMapPagesTakesWholeCaches) {
  FakeBundle bundle;
  cuda().maps_pages = false;
  cuda().largest_block = 5000;  // of much memory in small pieces
  cuda().total_bytes = int64_t{1} << 30;
  const auto model = load(bundle);
  const auto refused = model->create_session({.max_context = 1000});
  ASSERT_FALSE(refused);
  expect_error(refused.error(), ErrorCode::kOutOfMemory,
               {"no room for 24000 bytes", "are free", "smaller max_context"});
}

TEST_F(TensorRtEngine, ContextThatFindsNoMemoryIsReported) {
  FakeBundle bundle;
  tensorrt_fake().context_error = "Cuda Runtime (cudaError 2: out of memory)";
  const auto model = load(bundle);
  const auto refused = model->create_session();
  ASSERT_FALSE(refused);
  expect_error(refused.error(), ErrorCode::kOutOfMemory,
               {"could not make a context of engine/engine.plan", "bytes of device memory are free", "max_context"});
}

TEST_F(TensorRtEngine, StepThatCannotBeCapturedIsAnErrorThatNamesTheWayOut) {
  FakeBundle bundle;
  const auto model = load(bundle);
  const auto refused = [&](const std::string& word) {
    const auto session = model->create_session();
    ASSERT_FALSE(session);
    expect_error(session.error(), ErrorCode::kEngineFailed, {word, "decode_graph = false", "--no-decode-graph"});
  };
  tensorrt_fake().capturable = false;
  refused("cannot capture engine/engine.plan");
  tensorrt_fake().capturable = true;
  cuda().begin_capture = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  refused("begin a capture");
  cuda().begin_capture = CUDA_SUCCESS;
  cuda().instantiate = CUDA_ERROR_OUT_OF_MEMORY;
  refused("make a graph");
  cuda().instantiate = CUDA_SUCCESS;
  tensorrt_fake().fail_enqueue_after = 1;  // when it is captured
  refused("run engine/engine.plan");
  tensorrt_fake().fail_enqueue_after = -1;
  EXPECT_TRUE(model->create_session()) << "nothing stays behind";
}

TEST_F(TensorRtEngine, FirstStepThatFailsIsReportedWhenTheSessionIsMade) {
  FakeBundle bundle;
  const auto model = load(bundle);
  tensorrt_fake().fail_enqueue_after = 0;
  const auto refused = model->create_session();
  ASSERT_FALSE(refused);
  expect_error(refused.error(), ErrorCode::kEngineFailed,
               {"could not run engine/engine.plan", "illegal memory access"});
}

TEST_F(TensorRtEngine, CallersAllocatorGivesAllDeviceMemory) {
  FakeBundle bundle;
  LoadOptions options = TensorRtEngine::options();
  std::map<void*, int64_t> taken;
  options.tensorrt.allocator = DeviceAllocator{
      [&](int64_t bytes) -> void* {
        if (bytes > 90'000) return nullptr;
        CUdeviceptr data = 0;
        cuda().largest_block = INT64_MAX;
        const auto allocate = cuda_function<CUresult(CUdeviceptr*, size_t)>("cuMemAlloc_v2");
        EXPECT_EQ(allocate(&data, static_cast<size_t>(bytes)), CUDA_SUCCESS) << "its GPU is current";
        cuda().largest_block = 0;  // nobody else may
        taken[reinterpret_cast<void*>(data)] = bytes;
        return reinterpret_cast<void*>(data);
      },
      [&](void* data, int64_t bytes) {
        const auto free = cuda_function<CUresult(CUdeviceptr)>("cuMemFree_v2");
        EXPECT_EQ(taken[data], bytes);
        taken.erase(data);
        EXPECT_EQ(free(reinterpret_cast<CUdeviceptr>(data)), CUDA_SUCCESS);
      },
  };
  cuda().largest_block = 0;
  {
    const auto model = Model::load(bundle.write(), options);
    ASSERT_TRUE(model) << model.error().message;
    ASSERT_NE(tensorrt_fake().allocator, nullptr) << "constants of the plan too";
    auto session = model->create_session({.max_context = 200, .chunk_tokens = {}});
    ASSERT_TRUE(session) << session.error().message;
    const Mock mock = bundle.mock();
    EXPECT_EQ(values(*session->prefill(prompt(99))), values(*mock.session().prefill(prompt(99))));
    EXPECT_GT(taken.size(), 5u);
    const auto refused = model->create_session({.max_context = kCapacity, .chunk_tokens = {}});
    ASSERT_FALSE(refused);
    expect_error(refused.error(), ErrorCode::kOutOfMemory, {"no room for"});

    // As TensorRT asks for the memory of constants: IGpuAllocator.
    void* allocator = tensorrt_fake().allocator;
    void** functions = *static_cast<void***>(allocator);
    const auto allocate = reinterpret_cast<void* (*)(void*, uint64_t, uint64_t, uint32_t)>(functions[4]);
    const auto deallocate_async = reinterpret_cast<bool (*)(void*, void*, void*)>(functions[8]);
    void* constants = allocate(allocator, 1000, 256, 0);
    EXPECT_EQ(taken[constants], 1000);
    EXPECT_TRUE(deallocate_async(allocator, constants, nullptr));
    EXPECT_FALSE(taken.contains(constants));
    EXPECT_EQ(allocate(allocator, 200'000, 256, 0), nullptr);
  }
  EXPECT_TRUE(taken.empty());
}

TEST_F(TensorRtEngine, CallersStreamIsUsedAndLeftOpen) {
  FakeBundle bundle;
  CUstream stream = nullptr;
  cuda_function<CUresult(CUstream*, unsigned)>("cuStreamCreate")(&stream, CU_STREAM_NON_BLOCKING);
  LoadOptions options = TensorRtEngine::options();
  options.tensorrt.stream = stream;
  {
    const auto model = Model::load(bundle.write(), options);
    auto session = model->create_session({.max_context = 64, .chunk_tokens = {}});
    ASSERT_TRUE(session) << session.error().message;
    EXPECT_EQ(cuda().streams, 1) << "no other";
    const Mock mock = bundle.mock();
    EXPECT_EQ(values(*session->prefill(prompt(30))), values(*mock.session().prefill(prompt(30))));
  }
  EXPECT_EQ(cuda().streams, 1);
  cuda_function<CUresult(CUstream)>("cuStreamDestroy_v2")(stream);
}

}  // namespace
}  // namespace sala::test
