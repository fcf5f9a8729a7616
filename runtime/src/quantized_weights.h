// Quantised weights of a bundle as fp32: `code * scale * global_scale`, each block of a weight with its own scale.

#pragma once

#include <cstdint>

#include "file.h"
#include "manifest.h"
#include "sala/status.h"

namespace sala {

/// Elements of a quantised part; -1 if its bytes are no whole number of rows, or its blocks do not divide it or do not
/// fill the bytes of their scales.
int64_t quantized_elements(const WeightPart& part);

/// Writes the elements of a part, which `quantized_elements` has counted, to `to`, a few megabytes of codes at a time.
Status load_quantized_part(const File& codes, const File& scales, const WeightPart& part, float* to);

}  // namespace sala
