#include "cuda/cuda_driver.h"

#include <dlfcn.h>

namespace sala::cuda {

namespace {

// What the plugins and graph capture need; what TensorRT needs it says itself, when it loads a plan.
constexpr int kLeastCudaVersion = 12000;

template <class Function>
bool resolve(void* library, const char* symbol, Function& function, const char*& missing) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
  if (function == nullptr) missing = symbol;
  return function != nullptr;
}

constexpr const char* kUpdate = ": install driver 580 or later, which supports CUDA 13";

}  // namespace

Expected<CudaDriver> CudaDriver::load(const char* path) {
  // Never closed: libcuda keeps threads and at-exit handlers of its own.
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return error(ErrorCode::kDeviceMissing, "there is no NVIDIA driver (", dlerror(),
                 "): install one, or choose runtime onnxruntime for the CPU");
  }
  CudaDriver driver{};
  const char* missing = nullptr;
#define SALA_CUDA_RESOLVE(member, function, symbol, ...) resolve(library, symbol, driver.member, missing) &&
  const bool complete = SALA_CUDA_FUNCTIONS(SALA_CUDA_RESOLVE) true;
#undef SALA_CUDA_RESOLVE
  if (!complete) return error(ErrorCode::kDeviceUnsuitable, "the NVIDIA driver lacks ", missing, kUpdate);
  int version = 0;
  SALA_RETURN_IF_ERROR(driver.check(driver.driver_get_version(&version), "ask for the driver's version"));
  if (version < kLeastCudaVersion) {
    return error(ErrorCode::kDeviceUnsuitable, "the NVIDIA driver supports CUDA ", version / 1000, ".",
                 version % 1000 / 10, ", at least 12.0 is needed", kUpdate);
  }
  if (const CUresult result = driver.init(0); result != kCudaSuccess) {
    const Status failed = driver.check(result, "start the NVIDIA driver");
    return error(ErrorCode::kDeviceMissing, failed.error().message,
                 ": check the GPU with nvidia-smi, or choose runtime onnxruntime for the CPU");
  }
  return driver;
}

Status CudaDriver::check(CUresult result, std::string_view what) const {
  if (result == kCudaSuccess) return success();
  const char* text = nullptr;
  if (get_error_string(result, &text) != kCudaSuccess || text == nullptr) text = "unknown error";
  const ErrorCode code = result == kCudaErrorOutOfMemory ? ErrorCode::kOutOfMemory : ErrorCode::kEngineFailed;
  return error(code, "CUDA could not ", what, ": ", text, " (CUDA error ", static_cast<int>(result), ")");
}

}  // namespace sala::cuda
