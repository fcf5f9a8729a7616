// A GPU that a bundle is for.

#pragma once

#include <memory>
#include <string>

#include "bundle/manifest.h"
#include "engines/tensorrt/cuda_driver.h"
#include "sala/status.h"

namespace sala::tensorrt {

/// A GPU and its primary context, which TensorRT uses too; kept for the life of this object.
class Device {
 public:
  /// The first GPU of one of the bundle's compute capabilities. kDeviceMissing if there is no driver or no GPU at all,
  /// kDeviceUnsuitable if those present are others: says which the bundle is for, the runtimes that can run it here,
  /// and the command that builds it for the first GPU here too.
  static Expected<std::shared_ptr<const Device>> find(const Manifest& manifest);

  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device();

  const CudaDriver& driver() const { return driver_; }

  /// Bytes of device memory that are free, whoever may take them.
  Expected<int64_t> free_bytes() const;

  /// Makes the GPU that of the calling thread, for the life of this object.
  class Current {
   public:
    explicit Current(const Device& device);
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    ~Current();

   private:
    const Device& device_;
  };

 private:
  Device(const CudaDriver& driver, CUdevice device, CUcontext context)
      : driver_(driver), device_(device), context_(context) {}

  CudaDriver driver_;
  CUdevice device_;
  CUcontext context_;
};

}  // namespace sala::tensorrt
