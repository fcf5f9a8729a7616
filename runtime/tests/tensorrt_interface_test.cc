// The functions of interface.h against the open headers that this build has; for other versions see
// tests/runtime/test_tensorrt_interface.py.

#include <NvInferRuntime.h>
#include <gtest/gtest.h>

#include <cstring>
#include <source_location>
#include <type_traits>

#include "engines/tensorrt/interface.h"

namespace sala::tensorrt {
namespace {

using nvinfer1::apiv::VCudaEngine;
using nvinfer1::apiv::VExecutionContext;
using nvinfer1::apiv::VHostMemory;
using nvinfer1::apiv::VRuntime;

/// In the Itanium C++ ABI a pointer to a virtual member function holds one more than its offset in the table.
template <class Member>
int position(Member member) {
  uintptr_t offset;
  std::memcpy(&offset, &member, sizeof offset);
  return static_cast<int>((offset - 1) / sizeof(void*));
}

/// Whether TensorRT passes a value of `Theirs` as a value of `Ours` is passed.
template <class Ours, class Theirs>
constexpr bool passes_alike() {
  if constexpr (std::is_enum_v<Theirs>) {
    return std::is_same_v<Ours, std::underlying_type_t<Theirs>>;
  } else if constexpr (std::is_pointer_v<Theirs> || std::is_reference_v<Theirs>) {
    return std::is_pointer_v<Ours>;
  } else if constexpr (std::is_same_v<Theirs, nvinfer1::Dims>) {
    return std::is_same_v<Ours, Dims>;
  } else {
    return std::is_same_v<Ours, Theirs>;
  }
}

template <class Function, class Member>
constexpr bool kSameSignature = false;

template <class Ours, class... OurArguments, class Class, class Theirs, class... TheirArguments>
  requires(sizeof...(OurArguments) == sizeof...(TheirArguments))
constexpr bool kSameSignature<Function<Ours(OurArguments...)>, Theirs (Class::*)(TheirArguments...) noexcept> =
    passes_alike<Ours, Theirs>() && (passes_alike<OurArguments, TheirArguments>() && ...);

template <class Function, class Class, class Theirs, class... TheirArguments>
constexpr bool kSameSignature<Function, Theirs (Class::*)(TheirArguments...) const noexcept> =
    kSameSignature<Function, Theirs (Class::*)(TheirArguments...) noexcept>;

// An integer of another width, a value for a pointer, and an argument that is not there would each go wrong in a call.
using SetDeviceMemory = void (VExecutionContext::*)(void*, int64_t) noexcept;
static_assert(kSameSignature<Function<void(void*, int64_t)>, SetDeviceMemory>);
static_assert(!kSameSignature<Function<void(void*, int32_t)>, SetDeviceMemory>);
static_assert(!kSameSignature<Function<void(int64_t, int64_t)>, SetDeviceMemory>);
static_assert(!kSameSignature<Function<void(void*)>, SetDeviceMemory>);

template <class Member, class Function>
void expect_same(Function ours, Member theirs, std::source_location where = std::source_location::current()) {
  static_assert(kSameSignature<Function, Member>);
  EXPECT_EQ(ours.position(), position(theirs)) << "line " << where.line();
}

TEST(TensorRtInterface, HasTheFunctionsOfTheOpenHeaders) {
#ifdef TRT_MAJOR_RTX
  const Interface* interface = find_interface("rtx", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
#else
  const Interface* interface = find_interface("tensorrt", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
#endif
  ASSERT_NE(interface, nullptr);
  using Deserialize = nvinfer1::ICudaEngine* (VRuntime::*)(const void*, size_t) noexcept;
  expect_same<Deserialize>(interface->deserialize_cuda_engine, &VRuntime::deserializeCudaEngine);
  expect_same(interface->set_gpu_allocator, &VRuntime::setGpuAllocator);
  expect_same(interface->set_engine_host_code_allowed, &VRuntime::setEngineHostCodeAllowed);
  expect_same(interface->create_execution_context, &VCudaEngine::createExecutionContext);
  expect_same(interface->get_nb_optimization_profiles, &VCudaEngine::getNbOptimizationProfiles);
  expect_same(interface->get_tensor_shape, &VCudaEngine::getTensorShape);
  expect_same(interface->get_tensor_data_type, &VCudaEngine::getTensorDataType);
  expect_same(interface->get_tensor_io_mode, &VCudaEngine::getTensorIOMode);
  expect_same(interface->get_profile_shape, &VCudaEngine::getProfileShape);
  expect_same(interface->get_nb_io_tensors, &VCudaEngine::getNbIOTensors);
  expect_same(interface->get_io_tensor_name, &VCudaEngine::getIOTensorName);
  expect_same(interface->get_device_memory_size_for_profile, &VCudaEngine::getDeviceMemorySizeForProfileV2);
  expect_same(interface->set_optimization_profile_async, &VExecutionContext::setOptimizationProfileAsync);
  expect_same(interface->set_input_shape, &VExecutionContext::setInputShape);
  expect_same(interface->set_tensor_address, &VExecutionContext::setTensorAddress);
  expect_same(interface->enqueue, &VExecutionContext::enqueueV3);
  expect_same(interface->set_device_memory, &VExecutionContext::setDeviceMemoryV2);
  expect_same(kHostMemoryData, &VHostMemory::data);
  expect_same(kHostMemorySize, &VHostMemory::size);
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
