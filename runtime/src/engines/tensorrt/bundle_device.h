// The GPU that a bundle runs on.

#pragma once

#include <memory>

#include "bundle/manifest.h"
#include "cuda/device.h"
#include "sala/status.h"

namespace sala::tensorrt {

/// The first GPU of one of the bundle's compute capabilities. kDeviceMissing if there is no driver or no GPU at all,
/// kDeviceUnsuitable if those present are others: says which the bundle is for, the runtimes that can run it here, and
/// the command that builds it for the first GPU here too.
Expected<std::shared_ptr<const cuda::Device>> open_device(const Manifest& manifest);

}  // namespace sala::tensorrt
