// The CUDA driver, found at run time: a program that uses this library also starts where there is none.
//
// The part of its binary interface that the engine uses is written down here, so that neither a CUDA toolkit nor Python
// is needed to compile the runtime; a test compares it with cuda.h (runtime/tests/cuda_driver_test.cc).

#pragma once

#include <cstddef>
#include <string_view>

#include "sala/status.h"

namespace sala::cuda {

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;
using CUcontext = struct CUctx_st*;
using CUstream = struct CUstream_st*;
using CUgraph = struct CUgraph_st*;
using CUgraphExec = struct CUgraphExec_st*;
using CUmemGenericAllocationHandle = unsigned long long;

/// A pointer to device memory as the driver takes it.
inline CUdeviceptr address(const void* data) { return reinterpret_cast<CUdeviceptr>(data); }

constexpr CUresult kCudaSuccess = 0;
constexpr CUresult kCudaErrorOutOfMemory = 2;
constexpr int kDeviceAttributeComputeCapabilityMajor = 75;
constexpr int kDeviceAttributeComputeCapabilityMinor = 76;
constexpr int kDeviceAttributeVirtualMemoryManagementSupported = 102;
constexpr int kMemAllocationTypePinned = 1;
constexpr int kMemLocationTypeDevice = 1;
constexpr int kMemAccessFlagsProtReadWrite = 3;
constexpr int kMemAllocGranularityMinimum = 0;
constexpr unsigned kStreamNonBlocking = 1;
constexpr int kStreamCaptureModeThreadLocal = 1;

struct CUmemLocation {
  int type;
  int id;
};

struct CUmemAllocationProp {
  int type;
  int requested_handle_types;
  CUmemLocation location;
  void* win32_handle_meta_data;
  unsigned char flags[8];
};

struct CUmemAccessDesc {
  CUmemLocation location;
  int flags;
};

/// Members, the functions of cuda.h that they are, the symbols by which these are found, and their parameters.
#define SALA_CUDA_FUNCTIONS(X)                                                                                    \
  X(init, cuInit, "cuInit", unsigned)                                                                             \
  X(driver_get_version, cuDriverGetVersion, "cuDriverGetVersion", int*)                                           \
  X(device_get_count, cuDeviceGetCount, "cuDeviceGetCount", int*)                                                 \
  X(device_get, cuDeviceGet, "cuDeviceGet", CUdevice*, int)                                                       \
  X(device_get_name, cuDeviceGetName, "cuDeviceGetName", char*, int, CUdevice)                                    \
  X(device_get_attribute, cuDeviceGetAttribute, "cuDeviceGetAttribute", int*, int, CUdevice)                      \
  X(device_primary_ctx_retain, cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", CUcontext*, CUdevice)        \
  X(device_primary_ctx_release, cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", CUdevice)              \
  X(ctx_push_current, cuCtxPushCurrent, "cuCtxPushCurrent_v2", CUcontext)                                         \
  X(ctx_pop_current, cuCtxPopCurrent, "cuCtxPopCurrent_v2", CUcontext*)                                           \
  X(mem_get_info, cuMemGetInfo, "cuMemGetInfo_v2", size_t*, size_t*)                                              \
  X(mem_alloc, cuMemAlloc, "cuMemAlloc_v2", CUdeviceptr*, size_t)                                                 \
  X(mem_free, cuMemFree, "cuMemFree_v2", CUdeviceptr)                                                             \
  X(mem_host_alloc, cuMemHostAlloc, "cuMemHostAlloc", void**, size_t, unsigned)                                   \
  X(mem_free_host, cuMemFreeHost, "cuMemFreeHost", void*)                                                         \
  X(memcpy_htod, cuMemcpyHtoD, "cuMemcpyHtoD_v2", CUdeviceptr, const void*, size_t)                               \
  X(memcpy_dtoh, cuMemcpyDtoH, "cuMemcpyDtoH_v2", void*, CUdeviceptr, size_t)                                     \
  X(memcpy_dtod_async, cuMemcpyDtoDAsync, "cuMemcpyDtoDAsync_v2", CUdeviceptr, CUdeviceptr, size_t, CUstream)     \
  X(memcpy_htod_async, cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2", CUdeviceptr, const void*, size_t, CUstream)     \
  X(memcpy_dtoh_async, cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2", void*, CUdeviceptr, size_t, CUstream)           \
  X(memset_d8_async, cuMemsetD8Async, "cuMemsetD8Async", CUdeviceptr, unsigned char, size_t, CUstream)            \
  X(mem_get_allocation_granularity, cuMemGetAllocationGranularity, "cuMemGetAllocationGranularity", size_t*,      \
    const CUmemAllocationProp*, int)                                                                              \
  X(mem_address_reserve, cuMemAddressReserve, "cuMemAddressReserve", CUdeviceptr*, size_t, size_t, CUdeviceptr,   \
    unsigned long long)                                                                                           \
  X(mem_address_free, cuMemAddressFree, "cuMemAddressFree", CUdeviceptr, size_t)                                  \
  X(mem_create, cuMemCreate, "cuMemCreate", CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*,    \
    unsigned long long)                                                                                           \
  X(mem_release, cuMemRelease, "cuMemRelease", CUmemGenericAllocationHandle)                                      \
  X(mem_map, cuMemMap, "cuMemMap", CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long) \
  X(mem_unmap, cuMemUnmap, "cuMemUnmap", CUdeviceptr, size_t)                                                     \
  X(mem_set_access, cuMemSetAccess, "cuMemSetAccess", CUdeviceptr, size_t, const CUmemAccessDesc*, size_t)        \
  X(stream_create, cuStreamCreate, "cuStreamCreate", CUstream*, unsigned)                                         \
  X(stream_destroy, cuStreamDestroy, "cuStreamDestroy_v2", CUstream)                                              \
  X(stream_synchronize, cuStreamSynchronize, "cuStreamSynchronize", CUstream)                                     \
  X(stream_begin_capture, cuStreamBeginCapture, "cuStreamBeginCapture_v2", CUstream, int)                         \
  X(stream_end_capture, cuStreamEndCapture, "cuStreamEndCapture", CUstream, CUgraph*)                             \
  X(graph_instantiate, cuGraphInstantiateWithFlags, "cuGraphInstantiateWithFlags", CUgraphExec*, CUgraph,         \
    unsigned long long)                                                                                           \
  X(graph_launch, cuGraphLaunch, "cuGraphLaunch", CUgraphExec, CUstream)                                          \
  X(graph_exec_destroy, cuGraphExecDestroy, "cuGraphExecDestroy", CUgraphExec)                                    \
  X(graph_destroy, cuGraphDestroy, "cuGraphDestroy", CUgraph)                                                     \
  X(get_error_string, cuGetErrorString, "cuGetErrorString", CUresult, const char**)

struct CudaDriver {
#define SALA_CUDA_MEMBER(member, function, symbol, ...) CUresult (*member)(__VA_ARGS__);
  SALA_CUDA_FUNCTIONS(SALA_CUDA_MEMBER)
#undef SALA_CUDA_MEMBER

  /// Loads and initialises it. kDeviceMissing if there is no driver or no GPU, kDeviceUnsuitable if it is too old.
  static Expected<CudaDriver> load(const char* library = "libcuda.so.1");

  /// kOutOfMemory or kEngineFailed unless `result` is success; `what` was attempted.
  Status check(CUresult result, std::string_view what) const;
};

}  // namespace sala::cuda
