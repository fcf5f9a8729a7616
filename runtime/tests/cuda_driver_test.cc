// The engine's own declarations of the CUDA driver's interface against cuda.h.

#include "cuda/cuda_driver.h"

#include <cuda.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <string_view>
#include <type_traits>

namespace sala::cuda {
namespace {

/// Enumerations of cuda.h are int here, its handles are other incomplete types: what counts is how a call passes them.
template <class Ours, class Theirs>
constexpr bool kPassedAlike = sizeof(Ours) == sizeof(Theirs) && std::is_pointer_v<Ours> == std::is_pointer_v<Theirs>;

template <class Ours, class Theirs>
struct Alike : std::false_type {};
template <class Result, class... Ours, class TheirResult, class... Theirs>
  requires(sizeof...(Ours) == sizeof...(Theirs))
struct Alike<Result (*)(Ours...), TheirResult (*)(Theirs...)>
    : std::bool_constant<kPassedAlike<Result, TheirResult> && (kPassedAlike<Ours, Theirs> && ...)> {};

// cuda.h renames functions to versioned symbols; the second macro sees the new name.
#define SALA_TEXT(name) #name
#define SALA_SYMBOL(name) SALA_TEXT(name)

TEST(CudaDriver, IsDeclaredAsInCudaH) {
#define SALA_COMPARE(member, function, symbol, ...)                                         \
  static_assert(Alike<decltype(CudaDriver::member), decltype(&::function)>::value, symbol); \
  EXPECT_EQ(std::string_view(SALA_SYMBOL(function)), symbol);
  SALA_CUDA_FUNCTIONS(SALA_COMPARE)
#undef SALA_COMPARE
  static_assert(kCudaSuccess == static_cast<int>(CUDA_SUCCESS));
  static_assert(kCudaErrorOutOfMemory == static_cast<int>(CUDA_ERROR_OUT_OF_MEMORY));
  static_assert(kDeviceAttributeComputeCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  static_assert(kDeviceAttributeComputeCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  static_assert(kDeviceAttributeVirtualMemoryManagementSupported ==
                CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
  static_assert(kMemAllocationTypePinned == CU_MEM_ALLOCATION_TYPE_PINNED);
  static_assert(kMemLocationTypeDevice == CU_MEM_LOCATION_TYPE_DEVICE);
  static_assert(kMemAccessFlagsProtReadWrite == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
  static_assert(kMemAllocGranularityMinimum == CU_MEM_ALLOC_GRANULARITY_MINIMUM);
  static_assert(sizeof(CUmemAllocationProp) == sizeof(::CUmemAllocationProp));
  static_assert(offsetof(CUmemAllocationProp, location) == offsetof(::CUmemAllocationProp, location));
  static_assert(offsetof(CUmemAllocationProp, flags) == offsetof(::CUmemAllocationProp, allocFlags));
  static_assert(sizeof(CUmemLocation) == sizeof(::CUmemLocation));
  static_assert(offsetof(CUmemLocation, id) == offsetof(::CUmemLocation, id));
  static_assert(sizeof(CUmemAccessDesc) == sizeof(::CUmemAccessDesc));
  static_assert(offsetof(CUmemAccessDesc, flags) == offsetof(::CUmemAccessDesc, flags));
  static_assert(kStreamNonBlocking == CU_STREAM_NON_BLOCKING);
  static_assert(kStreamCaptureModeThreadLocal == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
}

}  // namespace
}  // namespace sala::cuda
