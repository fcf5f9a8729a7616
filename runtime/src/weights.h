// The weights of the CPU graph: bytes of safetensors files, converted and packed.

#pragma once

#include <filesystem>
#include <vector>

#include "manifest.h"
#include "sala/engine.h"
#include "sala/status.h"

namespace sala {

/// One weight in host memory, as its `spec` says.
struct Weight {
  TensorSpec spec;
  Shape shape;
  Buffer buffer;
};

/// Loads all weights of `manifest.cpu`, one part at a time, so that memory holds little more than the result.
/// kBundleDamaged if the parts of a weight do not fill its shape, kOutOfMemory.
Expected<std::vector<Weight>> load_weights(const std::filesystem::path& bundle, const Manifest& manifest);

}  // namespace sala
