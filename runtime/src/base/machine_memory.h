// How much memory there is for this process.

#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace sala {

/// Bytes of the machine's memory, or of the smallest limit that control groups set to this process. Nothing if the
/// system does not tell. `root` is where /proc and /sys are looked for.
std::optional<int64_t> memory_limit(const std::filesystem::path& root = "/");

}  // namespace sala
