#include "common/kernel.h"

#include <map>
#include <mutex>
#include <string>

namespace sala {
namespace {

constexpr uint32_t kSharedBytesWithoutOptIn = 48 * 1024;
/// The GPU of a Jetson AGX Orin. NVIDIA does not promise that a Tegra runs what was compiled for a desktop's GPU.
constexpr int32_t kTegra = 87;

/// Under lazy loading a driver may put off loading until the first launch, which a graph capture does not allow.
/// Drivers before cuFuncLoad load a function to answer for its attributes. Neither is proved yet: it takes a GPU.
CUresult load(const CudaDriver& driver, CUfunction function) {
  if (driver.func_load != nullptr) return driver.func_load(function);
  int registers = 0;
  return driver.func_get_attribute(&registers, CU_FUNC_ATTRIBUTE_NUM_REGS, function);
}

}  // namespace

Expected<Device> current_device(const CudaDriver& driver) {
  Device device{};
  int major = 0;
  int minor = 0;
  SALA_RETURN_IF_ERROR(driver.check(driver.ctx_get_device(&device.ordinal), "cuCtxGetDevice"));
  SALA_RETURN_IF_ERROR(
      driver.check(driver.device_get_attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device.ordinal),
                   "cuDeviceGetAttribute(major)"));
  SALA_RETURN_IF_ERROR(
      driver.check(driver.device_get_attribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device.ordinal),
                   "cuDeviceGetAttribute(minor)"));
  device.sm = 10 * major + minor;
  return device;
}

const Image* find_image(const Launch& launch, DataType activation, int32_t variant, int32_t sm) {
  const Image* best = nullptr;
  for (const Image& image : launch.images) {
    if (image.activation != activation || image.variant != variant) continue;
    const bool runs_later = !image.runs_alone && sm != kTegra;
    const bool runs = image.sm == sm || (runs_later && image.sm / 10 == sm / 10 && image.sm < sm);
    if (runs && (best == nullptr || image.sm > best->sm)) best = &image;
  }
  return best;
}

Expected<std::shared_ptr<const Kernel>> Kernel::get(const CudaDriver& driver, const char* name, const Image& image) {
  static std::mutex mutex;
  static std::map<const unsigned char*, std::weak_ptr<const Kernel>> loaded;
  const std::lock_guard lock(mutex);
  std::weak_ptr<const Kernel>& slot = loaded[image.data];
  if (auto kernel = slot.lock()) return kernel;

  // Not make_shared: the constructor is private, and the cache's weak reference would keep the object's memory.
  std::shared_ptr<Kernel> kernel(new Kernel(driver, image));
  const std::string what = std::string(name) + " for sm_" + std::to_string(image.sm);
  SALA_RETURN_IF_ERROR(
      driver.check(driver.library_load_data(&kernel->library_, image.data, nullptr, nullptr, 0, nullptr, nullptr, 0),
                   "cuLibraryLoadData of " + what));
  SALA_RETURN_IF_ERROR(driver.check(driver.library_get_kernel(&kernel->kernel_, kernel->library_, name),
                                    "cuLibraryGetKernel of " + what));
  slot = kernel;
  return std::shared_ptr<const Kernel>(kernel);
}

Status Kernel::prepare(const char* name, const Device& device) const {
  CUfunction function = nullptr;
  SALA_RETURN_IF_ERROR(
      driver_->check(driver_->kernel_get_function(&function, kernel_), std::string("cuKernelGetFunction of ") + name));
  SALA_RETURN_IF_ERROR(driver_->check(load(*driver_, function), std::string("loading of ") + name));
  if (image_->shared_bytes <= kSharedBytesWithoutOptIn) return success();
  return driver_->check(driver_->kernel_set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                      static_cast<int>(image_->shared_bytes), kernel_, device.ordinal),
                        std::string("cuKernelSetAttribute(dynamic shared memory) of ") + name);
}

Kernel::~Kernel() {
  // At process end the driver may be gone already, and the kernel with it: a failure here leaves nothing to do.
  if (library_ != nullptr) static_cast<void>(driver_->library_unload(library_));
}

}  // namespace sala
