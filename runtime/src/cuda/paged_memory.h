// Memory of a GPU that grows by pages and shares them between buffers.

#pragma once

#include <memory>

#include "cuda/device.h"
#include "sala/engine.h"

namespace sala::cuda {

/// Whether the GPU and its driver can map pages. Some virtual GPUs cannot.
bool maps_pages(const Device& device);

/// Memory of a GPU that can.
Expected<std::unique_ptr<Memory>> paged_memory(std::shared_ptr<const Device> device);

}  // namespace sala::cuda
