// A plan as a file: proved before TensorRT sees it, since it carries native code.

#pragma once

#include <optional>
#include <string_view>

#include "bundle/bundle.h"
#include "sala/engine.h"
#include "sala/status.h"

namespace sala::tensorrt {

/// The bytes of the plan in host memory. kBundleDamaged unless they have the hash that bundle.json says, and the plugin
/// library of the hash that bundle.json says is among them as the only host code.
Expected<Buffer> read_plan(const Bundle& bundle);

/// A shared library of the host inside of `data`.
struct EmbeddedLibrary {
  int64_t offset;
  int64_t bytes;
};

/// The first x86-64 shared library (ELF) at or behind `from`; nothing if there is none.
std::optional<EmbeddedLibrary> find_embedded_library(std::string_view data, int64_t from);

}  // namespace sala::tensorrt
