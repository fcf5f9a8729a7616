// Plans as files: proved before TensorRT sees them, since they carry native code.

#pragma once

#include <filesystem>
#include <optional>
#include <string_view>

#include "manifest.h"
#include "sala/engine.h"
#include "sala/status.h"

namespace sala::tensorrt {

/// The bytes of a shard's plan in host memory. kBundleDamaged unless they have the hash that bundle.json says, and the
/// only host code among them is the plugin library of the hash that bundle.json says, in the shard that carries it.
Expected<Buffer> read_plan(const std::filesystem::path& bundle, const Manifest& manifest, const ShardEntry& shard);

/// A shared library of the host inside of `data`.
struct EmbeddedLibrary {
  int64_t offset;
  int64_t bytes;
};

/// The first x86-64 shared library (ELF) at or behind `from`; nothing if there is none.
std::optional<EmbeddedLibrary> find_embedded_library(std::string_view data, int64_t from);

}  // namespace sala::tensorrt
