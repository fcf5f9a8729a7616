// A GPU.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/cuda_driver.h"
#include "sala/status.h"

namespace sala::cuda {

/// What the driver tells about a GPU before it is opened.
struct FoundDevice {
  CUdevice device;
  std::string name;
  std::string compute_capability;  // "12.0"
};

/// All GPUs in the order of their ordinals. kDeviceMissing if there is none.
Expected<std::vector<FoundDevice>> find_devices(const CudaDriver& driver);

/// A GPU and its primary context, which TensorRT and PyTorch use too; kept for the life of this object.
class Device {
 public:
  static Expected<std::shared_ptr<const Device>> open(const CudaDriver& driver, const FoundDevice& found);

  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device();

  const CudaDriver& driver() const { return driver_; }
  CUdevice handle() const { return device_; }

  /// Bytes of device memory that are free, whoever may take them.
  Expected<int64_t> free_bytes() const;

  /// Copies to the host. What work on streams does must have ended, here and below.
  Status read(void* host, const void* from, int64_t bytes) const;
  /// Copies from the host. The streams of sessions find it when this returns.
  Status write(void* to, const void* host, int64_t bytes) const;
  Status copy(void* to, const void* from, int64_t bytes) const;
  Status set_zero(void* data, int64_t bytes) const;

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

}  // namespace sala::cuda
