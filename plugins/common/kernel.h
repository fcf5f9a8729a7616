// Compiled kernels on a device.

#pragma once

#include <memory>

#include "common/cuda_driver.h"
#include "common/operator_table.h"
#include "common/result.h"

namespace sala {

/// A device and its architecture, 10 * major + minor.
struct Device {
  CUdevice ordinal;
  int32_t sm;
};

/// The device of the calling thread's CUDA context.
Expected<Device> current_device(const CudaDriver& driver);

/// The cubin of a launch that runs on `sm`: of that architecture, or of the nearest lower one of the same major
/// version. Null if there is none.
const Image* find_image(const Launch& launch, DataType activation, int32_t variant, int32_t sm);

/// One loaded cubin; unloaded with the last owner. Valid in every context of the process.
class Kernel {
 public:
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  /// Shared by all callers that ask for the same image while one of them keeps it. Thread-safe.
  static Expected<std::shared_ptr<const Kernel>> get(const CudaDriver& driver, const char* name, const Image& image);

  /// Makes the kernel ready on the device, so that a launch loads nothing (a CUDA graph capture forbids it).
  Status prepare(const char* name, const Device& device) const;

  /// The driver takes a kernel wherever it takes a function, and uses that of the current context.
  CUfunction function() const { return reinterpret_cast<CUfunction>(kernel_); }

  const Image& image() const { return *image_; }

 private:
  Kernel(const CudaDriver& driver, const Image& image) : driver_(&driver), image_(&image) {}

  const CudaDriver* driver_;
  const Image* image_;
  CUlibrary library_ = nullptr;
  CUkernel kernel_ = nullptr;
};

}  // namespace sala
