#include "common/cuda_driver.h"

#include <dlfcn.h>

namespace sala {
namespace {

template <class Function>
bool resolve(void* library, const char* symbol, Function& function, const char*& missing) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (function == nullptr) missing = symbol;
  return function != nullptr;
}

constexpr int kVersionOfDependentLaunches = 12030;

// cuda.h renames functions to versioned symbols; the second macro sees the new name.
#define SALA_SYMBOL_TEXT(name) #name
#define SALA_SYMBOL(name) SALA_SYMBOL_TEXT(name)

Expected<CudaDriver> load() {
  // Never closed: libcuda keeps threads and at-exit handlers of its own.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return error("cannot load the NVIDIA driver (", dlerror(), "); install one to run engines");
  CudaDriver driver{};
  const char* missing = nullptr;
  const bool complete = resolve(library, SALA_SYMBOL(cuDriverGetVersion), driver.driver_get_version, missing) &&
                        resolve(library, SALA_SYMBOL(cuCtxGetCurrent), driver.ctx_get_current, missing) &&
                        resolve(library, SALA_SYMBOL(cuCtxPushCurrent), driver.ctx_push_current, missing) &&
                        resolve(library, SALA_SYMBOL(cuCtxPopCurrent), driver.ctx_pop_current, missing) &&
                        resolve(library, SALA_SYMBOL(cuCtxGetDevice), driver.ctx_get_device, missing) &&
                        resolve(library, SALA_SYMBOL(cuDeviceGetAttribute), driver.device_get_attribute, missing) &&
                        resolve(library, SALA_SYMBOL(cuLibraryLoadData), driver.library_load_data, missing) &&
                        resolve(library, SALA_SYMBOL(cuLibraryUnload), driver.library_unload, missing) &&
                        resolve(library, SALA_SYMBOL(cuLibraryGetKernel), driver.library_get_kernel, missing) &&
                        resolve(library, SALA_SYMBOL(cuKernelGetFunction), driver.kernel_get_function, missing) &&
                        resolve(library, SALA_SYMBOL(cuFuncGetAttribute), driver.func_get_attribute, missing) &&
                        resolve(library, SALA_SYMBOL(cuKernelSetAttribute), driver.kernel_set_attribute, missing) &&
                        resolve(library, SALA_SYMBOL(cuLaunchKernel), driver.launch_kernel, missing) &&
                        resolve(library, SALA_SYMBOL(cuMemAlloc), driver.mem_alloc, missing) &&
                        resolve(library, SALA_SYMBOL(cuMemFree), driver.mem_free, missing) &&
                        resolve(library, SALA_SYMBOL(cuMemsetD8Async), driver.memset_d8_async, missing) &&
                        resolve(library, SALA_SYMBOL(cuMemcpyDtoDAsync), driver.memcpy_dtod_async, missing) &&
                        resolve(library, SALA_SYMBOL(cuStreamCreate), driver.stream_create, missing) &&
                        resolve(library, SALA_SYMBOL(cuStreamDestroy), driver.stream_destroy, missing) &&
                        resolve(library, SALA_SYMBOL(cuStreamSynchronize), driver.stream_synchronize, missing) &&
                        resolve(library, SALA_SYMBOL(cuThreadExchangeStreamCaptureMode),
                                driver.thread_exchange_stream_capture_mode, missing) &&
                        resolve(library, SALA_SYMBOL(cuGetErrorString), driver.get_error_string, missing);
  if (!complete) return error("the NVIDIA driver lacks ", missing, "; install one that supports CUDA 12 or later");
  driver.func_load = reinterpret_cast<decltype(driver.func_load)>(dlsym(library, SALA_SYMBOL(cuFuncLoad)));
  int version = 0;
  SALA_RETURN_IF_ERROR(driver.check(driver.driver_get_version(&version), "cuDriverGetVersion"));
  if (version >= kVersionOfDependentLaunches) {
    driver.launch_kernel_ex =
        reinterpret_cast<decltype(driver.launch_kernel_ex)>(dlsym(library, SALA_SYMBOL(cuLaunchKernelEx)));
  }
  return driver;
}

}  // namespace

Status CudaDriver::check(CUresult result, std::string_view what) const {
  if (result == CUDA_SUCCESS) return success();
  const char* text = nullptr;
  if (get_error_string(result, &text) != CUDA_SUCCESS || text == nullptr) text = "unknown error";
  return error(what, ": ", text, " (CUDA error ", static_cast<int>(result), ")");
}

const Expected<CudaDriver>& cuda_driver() {
  static const Expected<CudaDriver> driver = load();
  return driver;
}

}  // namespace sala
