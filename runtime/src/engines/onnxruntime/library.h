// ONNX Runtime as a library found at run time, through its C interface.

#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "engines/onnxruntime/interface.h"
#include "sala/status.h"

namespace sala {

/// The functions of a loaded libonnxruntime. The library stays loaded until the process ends: it keeps threads.
class OnnxRuntimeLibrary {
 public:
  /// `path` empty: looked for as `find_library` (library_search.h) does, and where the system looks.
  static Expected<OnnxRuntimeLibrary> load(const std::filesystem::path& path);

  const OrtApi& api() const { return *api_; }

  /// Takes a status that the C interface returned. `what` was attempted.
  Status check(OrtStatus* status, const char* what) const;

 private:
  explicit OnnxRuntimeLibrary(const OrtApi& api) : api_(&api) {}

  const OrtApi* api_;
};

/// Owns an object of the C interface.
template <class T>
using OrtPtr = std::unique_ptr<T, void (*)(T*)>;

}  // namespace sala
