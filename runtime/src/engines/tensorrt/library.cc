#include "engines/tensorrt/library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

#include "base/library_search.h"

namespace sala::tensorrt {

namespace {

std::string flavour_name(const EngineEntry& engine) {
  return engine.tensorrt_flavour == "rtx" ? "TensorRT for RTX" : "TensorRT";
}

/// What to install. The libraries of TensorRT proper are in no Python package of the public index.
std::string package(const EngineEntry& engine) {
  if (engine.tensorrt_flavour == "rtx") return "the Python package tensorrt-rtx-cu13==" + engine.tensorrt_version;
  return "TensorRT " + engine.tensorrt_version + ", which NVIDIA distributes";
}

/// `libtensorrt_rtx.so.1`.
std::string file_name(const EngineEntry& engine) {
  const std::string major = engine.tensorrt_version.substr(0, engine.tensorrt_version.find('.'));
  return (engine.tensorrt_flavour == "rtx" ? "libtensorrt_rtx.so." : "libnvinfer.so.") + major;
}

Expected<void*> open(const EngineEntry& engine, const std::filesystem::path& path) {
  const std::string name = file_name(engine);
  std::vector<std::filesystem::path> candidates = {path};
  if (path.empty()) {
    const char* folder = engine.tensorrt_flavour == "rtx" ? "tensorrt_rtx_libs" : "tensorrt_libs";
    candidates = {find_library(name, folder), name};
  }
  std::string failures;
  for (const auto& candidate : candidates) {
    if (candidate.empty()) continue;
    void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) return handle;
    failures += std::string(failures.empty() ? "" : "; ") + dlerror();
  }
  return error(ErrorCode::kLibraryMissing, title(engine), " was not found (", failures, "): install ", package(engine),
               ", or give the path of ", name);
}

/// One number of the library's version; -1 if it does not tell.
int version_part(void* handle, const char* function) {
  const auto get = reinterpret_cast<int32_t (*)()>(dlsym(handle, function));
  return get == nullptr ? -1 : get();
}

}  // namespace

std::string title(const EngineEntry& engine) { return flavour_name(engine) + " " + engine.tensorrt_version; }

Expected<Library> Library::load(const EngineEntry& engine, const std::filesystem::path& path) {
  const auto handle = open(engine, path);
  if (!handle) return handle.error();
  const auto create = reinterpret_cast<void* (*)(void*, int32_t)>(dlsym(*handle, "createInferRuntime_INTERNAL"));
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(*handle, "getInferLibVersion"));
  if (create == nullptr || version == nullptr) {
    return error(ErrorCode::kLibraryUnusable, path.empty() ? file_name(engine) : path.string(),
                 " is not TensorRT: it lacks ",
                 create == nullptr ? "createInferRuntime_INTERNAL" : "getInferLibVersion", "; give the path of ",
                 file_name(engine));
  }
  const int major = version_part(*handle, "getInferLibMajorVersion");
  const int minor = version_part(*handle, "getInferLibMinorVersion");
  const std::string present = std::to_string(major) + "." + std::to_string(minor) + "." +
                              std::to_string(version_part(*handle, "getInferLibPatchVersion")) + "." +
                              std::to_string(version_part(*handle, "getInferLibBuildVersion"));
  if (present != engine.tensorrt_version) {
    return error(ErrorCode::kLibraryUnusable, "the installed ", flavour_name(engine), " is ", present,
                 ", the bundle's engine needs ", engine.tensorrt_version, ": install ", package(engine),
                 ", or build the bundle again");
  }
  const Interface* interface = find_interface(engine.tensorrt_flavour, major, minor);
  if (interface == nullptr) {
    return error(ErrorCode::kLibraryUnusable, title(engine), " is not known to this release, which knows ",
                 known_versions(engine.tensorrt_flavour), ": update sala-export, or build with one of these");
  }
  return Library(*interface, create, version());
}

Object Library::create_runtime(Log& log) const { return Object(create_runtime_(log.logger(), version_)); }

}  // namespace sala::tensorrt
