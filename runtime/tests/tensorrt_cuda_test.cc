// Drivers that are missing, too old or without a GPU.

#include "cuda/cuda_driver.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

using cuda::CudaDriver;

class TensorRtCuda : public TensorRt {};

TEST_F(TensorRtCuda, DriverThatIsMissingIsNamed) {
  const auto driver = CudaDriver::load("libno_such_driver.so.1");
  ASSERT_FALSE(driver);
  expect_error(driver.error(), ErrorCode::kDeviceMissing,
               {"there is no NVIDIA driver", "libno_such_driver.so.1", "install one", "runtime onnxruntime"});
}

TEST_F(TensorRtCuda, DriverThatLacksAFunctionIsTooOld) {
  const auto driver = CudaDriver::load(FAKE_OLD_CUDA);
  ASSERT_FALSE(driver);
  expect_error(driver.error(), ErrorCode::kDeviceUnsuitable, {"lacks cuGetErrorString", "install driver 580 or later"});
}

TEST_F(TensorRtCuda, DriverOfAnOlderCudaIsTooOld) {
  cuda().version = 11080;
  const auto driver = CudaDriver::load();
  ASSERT_FALSE(driver);
  expect_error(driver.error(), ErrorCode::kDeviceUnsuitable,
               {"supports CUDA 11.8, at least 12.0 is needed", "install driver 580 or later"});
}

TEST_F(TensorRtCuda, DriverThatDoesNotStartIsReported) {
  cuda().init = CUDA_ERROR_NO_DEVICE;
  const auto driver = CudaDriver::load();
  ASSERT_FALSE(driver);
  expect_error(driver.error(), ErrorCode::kDeviceMissing, {"CUDA could not start the NVIDIA driver", "nvidia-smi"});
}

TEST_F(TensorRtCuda, DriverWithoutGpuIsReported) {
  cuda().devices.clear();
  FakeBundle bundle;
  const auto model = load(bundle);
  ASSERT_FALSE(model);
  expect_error(model.error(), ErrorCode::kDeviceMissing, {"has no GPU"});
}

TEST_F(TensorRtCuda, OtherGpuSaysWhichRuntimesCanRunTheBundleAndHowToAddIt) {
  cuda().devices = {{9, 0}, {8, 6}};
  FakeBundle bundle;
  const auto model = load(bundle);
  ASSERT_FALSE(model);
  expect_error(model.error(), ErrorCode::kDeviceUnsuitable,
               {"for Fake GPU (12.0) and other GPUs of compute capability 8.9, 12.0",
                "this machine has Fake GPU 0 (9.0), Fake GPU 1 (8.6)",
                "runtime onnxruntime, which runs the bundle on this machine's CPU", "torch, which runs it on any",
                "sala-export build --gpu 'fake,Fake GPU 0'"});
  EXPECT_EQ(take_events(), std::vector<std::string>()) << "TensorRT was not asked";
}

TEST_F(TensorRtCuda, EngineOfTensorRtProperIsBuiltAgainForTheGpuThatIsHere) {
  cuda().devices = {{9, 0}};
  FakeBundle bundle;
  bundle.manifest["engine"]["tensorrt_flavour"] = "tensorrt";
  bundle.manifest["engine"]["gpus"] = Json::array();
  const auto model = load(bundle);
  ASSERT_FALSE(model);
  expect_error(model.error(), ErrorCode::kDeviceUnsuitable,
               {"is for GPUs of compute capability 8.9, 12.0, this machine", "--gpu 'Fake GPU 0'"});
}

TEST_F(TensorRtCuda, AnyOfTheBundlesGpusIsFoundAmongOthers) {
  for (const auto& capability : {std::pair(12, 0), std::pair(8, 9)}) {
    cuda().devices = {{8, 6}, {1, 20}, capability};
    FakeBundle bundle;
    const auto model = load(bundle);
    EXPECT_TRUE(model) << model.error().message;
  }
}

}  // namespace
}  // namespace sala::test
