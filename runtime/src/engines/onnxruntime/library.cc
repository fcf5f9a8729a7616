#include "engines/onnxruntime/library.h"

#include <dlfcn.h>

#include <vector>

#include "base/library_search.h"

namespace sala {

namespace {

constexpr const char* kLibraryNames[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
constexpr const char* kPackageFolder = "onnxruntime/capi";

std::vector<std::filesystem::path> candidates(const std::filesystem::path& path) {
  if (!path.empty()) return {path};
  std::vector<std::filesystem::path> result;
  if (auto found = find_library(kLibraryNames[1], kPackageFolder); !found.empty()) result.push_back(std::move(found));
  result.insert(result.end(), std::begin(kLibraryNames), std::end(kLibraryNames));
  return result;
}

}  // namespace

Expected<OnnxRuntimeLibrary> OnnxRuntimeLibrary::load(const std::filesystem::path& path) {
  void* handle = nullptr;
  std::string failures;
  for (const auto& candidate : candidates(path)) {
    handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) break;
    failures += std::string(failures.empty() ? "" : "; ") + dlerror();
  }
  if (handle == nullptr) {
    return error(ErrorCode::kLibraryMissing, "ONNX Runtime was not found (", failures,
                 "): put libonnxruntime.so.1 beside the program, for example a link to the one in the Python package "
                 "onnxruntime, or give its path");
  }
  const auto get_base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) {
    return error(ErrorCode::kLibraryUnusable, path.string(), " is not ONNX Runtime: it lacks OrtGetApiBase");
  }
  const OrtApi* api = get_base()->GetApi(kOrtApiVersion);
  if (api == nullptr) {
    return error(ErrorCode::kLibraryUnusable, "ONNX Runtime is version ", get_base()->GetVersionString(),
                 ", at least 1.", kOrtApiVersion, " is needed: update onnxruntime");
  }
  return OnnxRuntimeLibrary(*api);
}

Status OnnxRuntimeLibrary::check(OrtStatus* status, const char* what) const {
  if (status == nullptr) return success();
  Error result = error(ErrorCode::kEngineFailed, "ONNX Runtime could not ", what, ": ", api_->GetErrorMessage(status));
  api_->ReleaseStatus(status);
  return result;
}

}  // namespace sala
