#include "engines/tensorrt/bundle_device.h"

#include <algorithm>
#include <string>
#include <vector>

namespace sala::tensorrt {

namespace {

std::string described(const std::string& name, const std::string& compute_capability) {
  return name + " (" + compute_capability + ")";
}

void append(std::string& list, const std::string& item) { list += (list.empty() ? "" : ", ") + item; }

Error unsuitable(const EngineEntry& engine, const std::vector<cuda::FoundDevice>& present) {
  std::string gpus, recipes, capabilities, others;
  for (const GpuEntry& gpu : engine.gpus) {
    append(gpus, described(gpu.name, gpu.compute_capability));
    // TensorRT proper builds for the GPU that it runs on alone.
    if (engine.tensorrt_flavour == "rtx") recipes += gpu.recipe + ",";
  }
  for (const std::string& capability : engine.compute_capabilities) append(capabilities, capability);
  for (const cuda::FoundDevice& found : present) append(others, described(found.name, found.compute_capability));
  return error(ErrorCode::kDeviceUnsuitable, "the bundle's engine is for ", gpus, gpus.empty() ? "" : " and other ",
               "GPUs of compute capability ", capabilities, ", this machine has ", others,
               ": choose runtime onnxruntime, which runs the bundle on this machine's CPU, or torch, which runs it on "
               "any NVIDIA GPU, or build it again with sala-export build --gpu '",
               recipes, present.front().name, "', or --gpu rtx for any RTX card from Ampere on");
}

}  // namespace

Expected<std::shared_ptr<const cuda::Device>> open_device(const Manifest& manifest) {
  const auto driver = cuda::CudaDriver::load();
  if (!driver) return driver.error();
  const auto present = cuda::find_devices(*driver);
  if (!present) return present.error();
  const std::vector<std::string>& capabilities = manifest.engine.compute_capabilities;
  for (const cuda::FoundDevice& gpu : *present) {
    if (std::find(capabilities.begin(), capabilities.end(), gpu.compute_capability) != capabilities.end()) {
      return cuda::Device::open(*driver, gpu);
    }
  }
  return unsuitable(manifest.engine, *present);
}

}  // namespace sala::tensorrt
