// The C interface on the TensorRT engine: its options reach the engine, and what cannot run is said.

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "sala.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

struct Blocks {
  int live = 0;
  int given = 0;
};

void* allocate(int64_t bytes, void* user_data) {
  auto& blocks = *static_cast<Blocks*>(user_data);
  ++blocks.live;
  ++blocks.given;
  CUdeviceptr data = 0;
  const auto take = cuda_function<CUresult(CUdeviceptr*, size_t)>("cuMemAlloc_v2");
  const CUresult result = take(&data, static_cast<size_t>(bytes));
  return result == CUDA_SUCCESS ? reinterpret_cast<void*>(data) : nullptr;
}

void release(void* data, int64_t, void* user_data) {
  --static_cast<Blocks*>(user_data)->live;
  cuda_function<CUresult(CUdeviceptr)>("cuMemFree_v2")(reinterpret_cast<CUdeviceptr>(data));
}

class TensorRtC : public TensorRt {
 protected:
  void SetUp() override {
    TensorRt::SetUp();
    options_.tensorrt_library = FAKE_TENSORRT;
  }

  sala_error* load(FakeBundle& bundle) { return sala_model_load(bundle.write().c_str(), &options_, &model_); }

  sala_load_options options_ = SALA_LOAD_OPTIONS_INIT;
  sala_model* model_ = nullptr;
};

TEST_F(TensorRtC, TakesTheEngineWithTheCallersMemoryAndNoGraph) {
  FakeBundle bundle;
  Blocks blocks;
  options_.device_allocate = allocate;
  options_.device_release = release;
  options_.device_user_data = &blocks;
  options_.no_decode_graph = 1;
  ASSERT_EQ(load(bundle), nullptr);
  EXPECT_STREQ(sala_model_engine_name(model_), "tensorrt");
  EXPECT_STREQ(sala_model_runtime_reason(model_), "");
  sala_session* session = nullptr;
  ASSERT_EQ(sala_session_create(model_, nullptr, &session), nullptr);
  const std::vector<int32_t> ids = {3, 1, 4, 1, 5};
  ASSERT_EQ(sala_session_prefill(session, ids.data(), ids.size(), nullptr), nullptr);
  ASSERT_EQ(sala_session_decode(session, 9), nullptr);
  size_t count = 0;
  EXPECT_NE(sala_session_logits(session, &count), nullptr);
  EXPECT_EQ(count, static_cast<size_t>(kVocabSize));
  EXPECT_GT(blocks.given, 0);
  EXPECT_EQ(cuda().graph_launches, 0);
  sala_session_destroy(session);
  sala_model_destroy(model_);
  EXPECT_EQ(blocks.live, 0);
}

TEST_F(TensorRtC, TakesOtherWeightsAndTellsOfProgress) {
  FakeBundle bundle;
  const TestTensors tuned = test_tensors(31);
  const std::string weights = bundle.write_checkpoint(tuned).string() + "/";
  std::vector<int64_t> told;
  options_.weights = weights.c_str();
  options_.on_progress = [](int64_t done, int64_t total, void* user_data) -> int32_t {
    auto& seen = *static_cast<std::vector<int64_t>*>(user_data);
    seen = {done, total};
    return 1;
  };
  options_.load_user_data = &told;
  ASSERT_EQ(load(bundle), nullptr);
  EXPECT_STREQ(sala_model_source(model_), "checkpoint");
  EXPECT_EQ(sala_model_fingerprint(model_), FakeBundle::fingerprint(tuned));
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[0], told[1]);
  sala_model_destroy(model_);
  options_.on_progress = [](int64_t, int64_t, void*) -> int32_t { return 0; };
  sala_error* stopped = load(bundle);
  EXPECT_EQ(sala_error_code(stopped), SALA_ERROR_STOPPED);
  sala_error_destroy(stopped);
}

TEST_F(TensorRtC, SaysThatTheGpuIsAnother) {
  FakeBundle bundle;
  cuda().devices = {{8, 6}};
  options_.runtime = "tensorrt";
  sala_error* refused = load(bundle);
  ASSERT_NE(refused, nullptr);
  EXPECT_EQ(sala_error_code(refused), SALA_ERROR_DEVICE_UNSUITABLE);
  EXPECT_STREQ(sala_error_name(refused), "DeviceUnsuitable");
  sala_error_destroy(refused);
}

TEST_F(TensorRtC, HalfAnAllocatorIsRefused) {
  FakeBundle bundle;
  options_.device_allocate = allocate;
  sala_error* refused = load(bundle);
  EXPECT_EQ(sala_error_code(refused), SALA_ERROR_INVALID_ARGUMENT);
  sala_error_destroy(refused);
}

}  // namespace
}  // namespace sala::test
