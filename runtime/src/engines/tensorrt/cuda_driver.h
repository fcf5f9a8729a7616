// The CUDA driver, found at run time: a program that uses this library also starts where there is none.

#pragma once

#include <cuda.h>

#include <string_view>

#include "sala/status.h"

namespace sala::tensorrt {

/// Members and the functions that they are.
#define SALA_CUDA_FUNCTIONS(X)                             \
  X(init, cuInit)                                          \
  X(driver_get_version, cuDriverGetVersion)                \
  X(device_get_count, cuDeviceGetCount)                    \
  X(device_get, cuDeviceGet)                               \
  X(device_get_name, cuDeviceGetName)                      \
  X(device_get_attribute, cuDeviceGetAttribute)            \
  X(device_primary_ctx_retain, cuDevicePrimaryCtxRetain)   \
  X(device_primary_ctx_release, cuDevicePrimaryCtxRelease) \
  X(ctx_push_current, cuCtxPushCurrent)                    \
  X(ctx_pop_current, cuCtxPopCurrent)                      \
  X(mem_get_info, cuMemGetInfo)                            \
  X(mem_alloc, cuMemAlloc)                                 \
  X(mem_free, cuMemFree)                                   \
  X(mem_host_alloc, cuMemHostAlloc)                        \
  X(mem_free_host, cuMemFreeHost)                          \
  X(memcpy_htod, cuMemcpyHtoD)                             \
  X(memcpy_dtoh, cuMemcpyDtoH)                             \
  X(memcpy_htod_async, cuMemcpyHtoDAsync)                  \
  X(memcpy_dtoh_async, cuMemcpyDtoHAsync)                  \
  X(memset_d8_async, cuMemsetD8Async)                      \
  X(stream_create, cuStreamCreate)                         \
  X(stream_destroy, cuStreamDestroy)                       \
  X(stream_synchronize, cuStreamSynchronize)               \
  X(stream_begin_capture, cuStreamBeginCapture)            \
  X(stream_end_capture, cuStreamEndCapture)                \
  X(graph_instantiate, cuGraphInstantiateWithFlags)        \
  X(graph_launch, cuGraphLaunch)                           \
  X(graph_exec_destroy, cuGraphExecDestroy)                \
  X(graph_destroy, cuGraphDestroy)                         \
  X(get_error_string, cuGetErrorString)

struct CudaDriver {
#define SALA_CUDA_MEMBER(member, function) decltype(&::function) member;
  SALA_CUDA_FUNCTIONS(SALA_CUDA_MEMBER)
#undef SALA_CUDA_MEMBER

  /// Loads and initialises it. kDeviceMissing if there is no driver or no GPU, kDeviceUnsuitable if it is too old.
  static Expected<CudaDriver> load(const char* library = "libcuda.so.1");

  /// kOutOfMemory or kEngineFailed unless `result` is CUDA_SUCCESS; `what` was attempted.
  Status check(CUresult result, std::string_view what) const;
};

}  // namespace sala::tensorrt
