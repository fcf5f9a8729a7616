#include "engines/tensorrt/device.h"

namespace sala::tensorrt {

namespace {

struct Found {
  CUdevice device;
  std::string name;
  std::string compute_capability;
};

Expected<Found> examine(const CudaDriver& driver, int ordinal) {
  Found found;
  char name[256] = "";
  int major = 0;
  int minor = 0;
  SALA_RETURN_IF_ERROR(driver.check(driver.device_get(&found.device, ordinal), "find a GPU"));
  SALA_RETURN_IF_ERROR(driver.check(driver.device_get_name(name, sizeof name, found.device), "name a GPU"));
  for (const auto& [value, attribute] : {std::pair(&major, kDeviceAttributeComputeCapabilityMajor),
                                         std::pair(&minor, kDeviceAttributeComputeCapabilityMinor)}) {
    SALA_RETURN_IF_ERROR(
        driver.check(driver.device_get_attribute(value, attribute, found.device), "ask for a compute capability"));
  }
  found.name = name;
  found.compute_capability = std::to_string(major) + "." + std::to_string(minor);
  return found;
}

Error unsuitable(const Manifest& manifest, const std::string& present) {
  const EngineEntry& engine = manifest.engine;
  return error(ErrorCode::kDeviceUnsuitable, "the bundle's engine is for ", engine.gpu_name, " (compute capability ",
               engine.compute_capability, "), this machine has ", present, ": ",
               manifest.weights_included
                   ? "choose runtime onnxruntime, which runs the bundle on this machine's CPU, or "
                     "torch, which runs it on any NVIDIA GPU, or build it for this GPU"
                   : "it has no weights, so no other runtime can run it; build it for this GPU");
}

}  // namespace

Expected<std::shared_ptr<const Device>> Device::find(const Manifest& manifest) {
  const auto driver = CudaDriver::load();
  if (!driver) return driver.error();
  int count = 0;
  SALA_RETURN_IF_ERROR(driver->check(driver->device_get_count(&count), "count GPUs"));
  if (count == 0) {
    return error(ErrorCode::kDeviceMissing,
                 "the NVIDIA driver has no GPU: check nvidia-smi, or choose runtime onnxruntime for the CPU");
  }
  std::string present;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    const auto found = examine(*driver, ordinal);
    if (!found) return found.error();
    present += (ordinal == 0 ? "" : ", ") + found->name + " (" + found->compute_capability + ")";
    if (found->compute_capability != manifest.engine.compute_capability) continue;
    CUcontext context = nullptr;
    SALA_RETURN_IF_ERROR(
        driver->check(driver->device_primary_ctx_retain(&context, found->device), "open " + found->name));
    return std::shared_ptr<const Device>(new Device(*driver, found->device, context));
  }
  return unsuitable(manifest, present);
}

Device::~Device() { driver_.device_primary_ctx_release(device_); }

Expected<int64_t> Device::free_bytes() const {
  const Current current(*this);
  size_t free = 0;
  size_t total = 0;
  SALA_RETURN_IF_ERROR(driver_.check(driver_.mem_get_info(&free, &total), "ask for free memory"));
  return static_cast<int64_t>(free);
}

// Neither can fail: the context is retained, and what was pushed is popped in the same scope.
Device::Current::Current(const Device& device) : device_(device) { device_.driver_.ctx_push_current(device_.context_); }

Device::Current::~Current() {
  CUcontext popped = nullptr;
  device_.driver_.ctx_pop_current(&popped);
}

}  // namespace sala::tensorrt
