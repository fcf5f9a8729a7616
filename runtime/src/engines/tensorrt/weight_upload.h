// Weights on their way from files to the GPU.

#pragma once

#include <span>

#include "bundle/manifest.h"
#include "cuda/device.h"
#include "cuda/device_memory.h"
#include "engines/tensorrt/device_weights.h"
#include "sala/model.h"
#include "sala/status.h"
#include "weights/weight_source.h"

namespace sala::tensorrt {

/// Reads, hashes and converts inputs that `check_inputs` has taken, on up to eight of `options.threads`, each of which
/// copies a block to the GPU while it reads the next. The host's memory holds a few megabytes for each thread.
///
/// Tells `options.on_progress`, in bytes on the GPU. The first error ends all threads, and nothing stays behind. Its
/// message names the tensor, or the weight that could not be copied.
Expected<DeviceWeights> upload_weights(const cuda::Device& device, cuda::DeviceMemory& memory,
                                       cuda::PinnedMemory& pinned, std::span<const WeightInput> inputs,
                                       const WeightSource& source, const LoadOptions& options);

}  // namespace sala::tensorrt
