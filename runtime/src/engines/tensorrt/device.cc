#include "engines/tensorrt/device.h"

#include <algorithm>
#include <utility>
#include <vector>

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

std::string described(const std::string& name, const std::string& compute_capability) {
  return name + " (" + compute_capability + ")";
}

void append(std::string& list, const std::string& item) { list += (list.empty() ? "" : ", ") + item; }

Error unsuitable(const EngineEntry& engine, const std::vector<Found>& present) {
  std::string gpus, recipes, capabilities, others;
  for (const GpuEntry& gpu : engine.gpus) {
    append(gpus, described(gpu.name, gpu.compute_capability));
    // TensorRT proper builds for the GPU that it runs on alone.
    if (engine.tensorrt_flavour == "rtx") recipes += gpu.recipe + ",";
  }
  for (const std::string& capability : engine.compute_capabilities) append(capabilities, capability);
  for (const Found& found : present) append(others, described(found.name, found.compute_capability));
  return error(ErrorCode::kDeviceUnsuitable, "the bundle's engine is for ", gpus, gpus.empty() ? "" : " and other ",
               "GPUs of compute capability ", capabilities, ", this machine has ", others,
               ": choose runtime onnxruntime, which runs the bundle on this machine's CPU, or torch, which runs it on "
               "any NVIDIA GPU, or build it again with sala-export build --gpu '",
               recipes, present.front().name, "', or --gpu rtx for any RTX card from Ampere on");
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
  const std::vector<std::string>& capabilities = manifest.engine.compute_capabilities;
  std::vector<Found> present;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    auto found = examine(*driver, ordinal);
    if (!found) return found.error();
    present.push_back(*std::move(found));
    const Found& gpu = present.back();
    if (std::find(capabilities.begin(), capabilities.end(), gpu.compute_capability) == capabilities.end()) continue;
    CUcontext context = nullptr;
    SALA_RETURN_IF_ERROR(driver->check(driver->device_primary_ctx_retain(&context, gpu.device), "open " + gpu.name));
    return std::shared_ptr<const Device>(new Device(*driver, gpu.device, context));
  }
  return unsuitable(manifest.engine, present);
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
