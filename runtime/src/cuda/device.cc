#include "cuda/device.h"

#include <utility>

namespace sala::cuda {

namespace {

Expected<FoundDevice> examine(const CudaDriver& driver, int ordinal) {
  FoundDevice found;
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

}  // namespace

Expected<std::vector<FoundDevice>> find_devices(const CudaDriver& driver) {
  int count = 0;
  SALA_RETURN_IF_ERROR(driver.check(driver.device_get_count(&count), "count GPUs"));
  if (count == 0) {
    return error(ErrorCode::kDeviceMissing,
                 "the NVIDIA driver has no GPU: check nvidia-smi, or choose runtime onnxruntime for the CPU");
  }
  std::vector<FoundDevice> devices;
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    auto found = examine(driver, ordinal);
    if (!found) return found.error();
    devices.push_back(*std::move(found));
  }
  return devices;
}

Expected<std::shared_ptr<const Device>> Device::open(const CudaDriver& driver, const FoundDevice& found) {
  CUcontext context = nullptr;
  SALA_RETURN_IF_ERROR(driver.check(driver.device_primary_ctx_retain(&context, found.device), "open " + found.name));
  return std::shared_ptr<const Device>(new Device(driver, found.device, context));
}

Device::~Device() { driver_.device_primary_ctx_release(device_); }

Expected<int64_t> Device::free_bytes() const {
  const Current current(*this);
  size_t free = 0;
  size_t total = 0;
  SALA_RETURN_IF_ERROR(driver_.check(driver_.mem_get_info(&free, &total), "ask for free memory"));
  return static_cast<int64_t>(free);
}

Status Device::read(void* host, const void* from, int64_t bytes) const {
  const Current current(*this);
  return driver_.check(driver_.memcpy_dtoh(host, address(from), static_cast<size_t>(bytes)), "copy to the host");
}

// These calls may return before the work is done, and the streams of sessions do not wait for the default stream.

Status Device::write(void* to, const void* host, int64_t bytes) const {
  const Current current(*this);
  constexpr const char* kWhat = "copy from the host";
  SALA_RETURN_IF_ERROR(driver_.check(driver_.memcpy_htod(address(to), host, static_cast<size_t>(bytes)), kWhat));
  return driver_.check(driver_.stream_synchronize(nullptr), kWhat);
}

Status Device::copy(void* to, const void* from, int64_t bytes) const {
  const Current current(*this);
  constexpr const char* kWhat = "copy device memory";
  SALA_RETURN_IF_ERROR(
      driver_.check(driver_.memcpy_dtod_async(address(to), address(from), static_cast<size_t>(bytes), nullptr), kWhat));
  return driver_.check(driver_.stream_synchronize(nullptr), kWhat);
}

Status Device::set_zero(void* data, int64_t bytes) const {
  const Current current(*this);
  constexpr const char* kWhat = "clear memory";
  SALA_RETURN_IF_ERROR(
      driver_.check(driver_.memset_d8_async(address(data), 0, static_cast<size_t>(bytes), nullptr), kWhat));
  return driver_.check(driver_.stream_synchronize(nullptr), kWhat);
}

// Neither can fail: the context is retained, and what was pushed is popped in the same scope.
Device::Current::Current(const Device& device) : device_(device) { device_.driver_.ctx_push_current(device_.context_); }

Device::Current::~Current() {
  CUcontext popped = nullptr;
  device_.driver_.ctx_pop_current(&popped);
}

}  // namespace sala::cuda
