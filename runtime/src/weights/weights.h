// The weights of the CPU graph in host memory.

#pragma once

#include <vector>

#include "bundle/manifest.h"
#include "sala/engine.h"
#include "sala/model.h"
#include "sala/status.h"
#include "weights/weight_source.h"

namespace sala {

/// One weight in host memory, as its `spec` says.
struct Weight {
  TensorSpec spec;
  Shape shape;
  Buffer buffer;
};

/// Loads all weights of `manifest.cpu` on `options.threads` threads and tells `options.on_progress`, so that memory
/// holds little more than the result. kBundleDamaged if the parts of a weight do not fill its shape, kOutOfMemory; and
/// what reading from `source` gives.
Expected<std::vector<Weight>> load_weights(const Manifest& manifest, const WeightSource& source,
                                           const LoadOptions& options);

}  // namespace sala
