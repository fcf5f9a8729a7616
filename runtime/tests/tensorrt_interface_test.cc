// The positions of interface.h against the open headers that this build has; for other versions see
// tests/runtime/test_tensorrt_interface.py.

#include <NvInferRuntime.h>
#include <gtest/gtest.h>

#include <cstring>

#include "engines/tensorrt/interface.h"

namespace sala::tensorrt {
namespace {

using nvinfer1::apiv::VCudaEngine;
using nvinfer1::apiv::VExecutionContext;
using nvinfer1::apiv::VRuntime;

/// In the Itanium C++ ABI a pointer to a virtual member function holds one more than its offset in the table.
template <class Member>
int position(Member member) {
  uintptr_t offset;
  std::memcpy(&offset, &member, sizeof offset);
  return static_cast<int>((offset - 1) / sizeof(void*));
}

TEST(TensorRtInterface, HasThePositionsOfTheOpenHeaders) {
#ifdef TRT_MAJOR_RTX
  const Interface* interface = find_interface("rtx", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
#else
  const Interface* interface = find_interface("tensorrt", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
#endif
  ASSERT_NE(interface, nullptr);
  using Deserialize = nvinfer1::ICudaEngine* (VRuntime::*)(const void*, size_t) noexcept;
  EXPECT_EQ(interface->deserialize_cuda_engine, position<Deserialize>(&VRuntime::deserializeCudaEngine));
  EXPECT_EQ(interface->set_gpu_allocator, position(&VRuntime::setGpuAllocator));
  EXPECT_EQ(interface->set_engine_host_code_allowed, position(&VRuntime::setEngineHostCodeAllowed));
  EXPECT_EQ(interface->create_execution_context, position(&VCudaEngine::createExecutionContext));
  EXPECT_EQ(interface->get_nb_optimization_profiles, position(&VCudaEngine::getNbOptimizationProfiles));
  EXPECT_EQ(interface->get_tensor_shape, position(&VCudaEngine::getTensorShape));
  EXPECT_EQ(interface->get_tensor_data_type, position(&VCudaEngine::getTensorDataType));
  EXPECT_EQ(interface->get_tensor_io_mode, position(&VCudaEngine::getTensorIOMode));
  EXPECT_EQ(interface->get_profile_shape, position(&VCudaEngine::getProfileShape));
  EXPECT_EQ(interface->get_nb_io_tensors, position(&VCudaEngine::getNbIOTensors));
  EXPECT_EQ(interface->get_io_tensor_name, position(&VCudaEngine::getIOTensorName));
  EXPECT_EQ(interface->get_device_memory_size_for_profile, position(&VCudaEngine::getDeviceMemorySizeForProfileV2));
  EXPECT_EQ(interface->set_optimization_profile_async, position(&VExecutionContext::setOptimizationProfileAsync));
  EXPECT_EQ(interface->set_input_shape, position(&VExecutionContext::setInputShape));
  EXPECT_EQ(interface->set_tensor_address, position(&VExecutionContext::setTensorAddress));
  EXPECT_EQ(interface->enqueue, position(&VExecutionContext::enqueueV3));
  EXPECT_EQ(interface->set_device_memory, position(&VExecutionContext::setDeviceMemoryV2));
}

TEST(TensorRtInterface, HasTheEnumerationsOfTheOpenHeaders) {
  EXPECT_EQ(kMaxShape, static_cast<int32_t>(nvinfer1::OptProfileSelector::kMAX));
  EXPECT_EQ(kUserManaged, static_cast<int32_t>(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
  EXPECT_EQ(kInputTensor, static_cast<int32_t>(nvinfer1::TensorIOMode::kINPUT));
  EXPECT_EQ(sizeof(Dims), sizeof(nvinfer1::Dims));
  EXPECT_EQ(offsetof(Dims, extents), offsetof(nvinfer1::Dims, d));
}

TEST(TensorRtInterface, IsKnownForProvedVersionsOnly) {
  for (const auto& [flavour, major, minor] : {std::tuple("rtx", 1, 5),
                                              {"rtx", 1, 8},
                                              {"rtx", 2, 0},
                                              {"tensorrt", 10, 10},
                                              {"tensorrt", 12, 0},
                                              {"tensorrt", 1, 7},
                                              {"other", 1, 7}}) {
    EXPECT_EQ(find_interface(flavour, major, minor), nullptr) << flavour << " " << major << "." << minor;
  }
  EXPECT_TRUE(find_interface("rtx", 1, 7)->has_runtime_cache());
  EXPECT_FALSE(find_interface("tensorrt", 11, 4)->has_runtime_cache());
}

}  // namespace
}  // namespace sala::tensorrt
