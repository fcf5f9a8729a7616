// The CUDA driver, loaded when the first kernel is needed: engines are built on machines that have none.

#pragma once

#include <cuda.h>

#include <string_view>

#include "common/result.h"

namespace sala {

/// Entry points of libcuda.so.1, CUDA 12.0 or later; members are named as the functions are.
struct CudaDriver {
  decltype(&::cuDriverGetVersion) driver_get_version;
  decltype(&::cuCtxGetCurrent) ctx_get_current;
  decltype(&::cuCtxPushCurrent) ctx_push_current;
  decltype(&::cuCtxPopCurrent) ctx_pop_current;
  decltype(&::cuCtxGetDevice) ctx_get_device;
  decltype(&::cuDeviceGetAttribute) device_get_attribute;
  decltype(&::cuLibraryLoadData) library_load_data;
  decltype(&::cuLibraryUnload) library_unload;
  decltype(&::cuLibraryGetKernel) library_get_kernel;
  decltype(&::cuKernelGetFunction) kernel_get_function;
  decltype(&::cuFuncLoad) func_load;  // null before CUDA 12.4
  decltype(&::cuFuncGetAttribute) func_get_attribute;
  decltype(&::cuKernelSetAttribute) kernel_set_attribute;
  decltype(&::cuLaunchKernel) launch_kernel;
  decltype(&::cuLaunchKernelEx) launch_kernel_ex;  // null before CUDA 12.3: graphs then hold no dependent launches
  decltype(&::cuMemAlloc) mem_alloc;
  decltype(&::cuMemFree) mem_free;
  decltype(&::cuMemsetD8Async) memset_d8_async;
  decltype(&::cuMemcpyDtoDAsync) memcpy_dtod_async;
  decltype(&::cuStreamCreate) stream_create;
  decltype(&::cuStreamDestroy) stream_destroy;
  decltype(&::cuStreamSynchronize) stream_synchronize;
  decltype(&::cuThreadExchangeStreamCaptureMode) thread_exchange_stream_capture_mode;
  decltype(&::cuGetErrorString) get_error_string;

  /// Error unless `result` is CUDA_SUCCESS; `what` names the call and what it was made for.
  Status check(CUresult result, std::string_view what) const;
};

/// The driver of this process. Fails if it is absent or lacks an entry point; the outcome never changes. Thread-safe.
const Expected<CudaDriver>& cuda_driver();

}  // namespace sala
