// Memory of a GPU for caches.

#pragma once

#include <memory>
#include <optional>

#include "cuda/device.h"
#include "sala/engine.h"
#include "sala/model.h"

namespace sala::cuda {

/// Memory that grows by pages and shares them between buffers. It is in one piece for each buffer if the caller
/// allocates, or if the GPU or its driver cannot map pages, as some virtual GPUs cannot.
Expected<std::unique_ptr<Memory>> cache_memory(std::shared_ptr<const Device> device,
                                               const std::optional<DeviceAllocator>& allocator);

}  // namespace sala::cuda
