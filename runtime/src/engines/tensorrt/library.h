// TensorRT as a library found at run time, of either flavour.

#pragma once

#include <filesystem>
#include <string>

#include "bundle/manifest.h"
#include "engines/tensorrt/interface.h"
#include "engines/tensorrt/log.h"
#include "sala/status.h"

namespace sala::tensorrt {

/// The functions of a loaded library. It stays loaded until the process ends: it keeps threads.
class Library {
 public:
  /// The library of the bundle's flavour and version. `path` empty: looked for as `find_library` does, in the folder of
  /// its Python package, and where the system looks. kLibraryMissing if there is none, kLibraryUnusable if it has
  /// another version or one whose interface this release does not know.
  static Expected<Library> load(const EngineEntry& engine, const std::filesystem::path& path);

  const Interface& interface() const { return *interface_; }

  /// An IRuntime; null if it cannot be made. `log` must outlive it.
  Object create_runtime(Log& log) const;

 private:
  Library(const Interface& interface, void* (*create)(void*, int32_t), int32_t version)
      : interface_(&interface), create_runtime_(create), version_(version) {}

  const Interface* interface_;
  void* (*create_runtime_)(void* logger, int32_t version);
  int32_t version_;
};

/// `TensorRT for RTX 1.7.1.116`.
std::string title(const EngineEntry& engine);

}  // namespace sala::tensorrt
