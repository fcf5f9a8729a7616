// What a plan says of itself, beside bundle.json.

#pragma once

#include "bundle/manifest.h"
#include "engines/tensorrt/interface.h"
#include "sala/status.h"

namespace sala::tensorrt {

/// kBundleDamaged if the tensors, types, shapes or profiles of an ICudaEngine are not those of the step and
/// `engine.weights`: everything that is bound later follows from there.
Status compare_with_manifest(const Interface& interface, void* engine, const Manifest& manifest);

}  // namespace sala::tensorrt
