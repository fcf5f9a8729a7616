// Whether the weights of a bundle fit a machine, and what would.

#pragma once

#include <cstdint>

#include "bundle/manifest.h"
#include "sala/status.h"

namespace sala {

/// kOutOfMemory if the weights of the CPU graphs, which take `needed` bytes, exceed `memory` bytes. The message names
/// the precision that fits, if one does.
Status require_memory(const Manifest& manifest, int64_t needed, int64_t memory);

}  // namespace sala
