#include "engines/onnxruntime/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <string_view>
#include <vector>

namespace sala {

namespace {

constexpr const char* kLibraryNames[] = {"libonnxruntime.so.1", "libonnxruntime.so"};

std::filesystem::path code_directory() {
  static const char anchor = 0;
  Dl_info info;
  if (dladdr(&anchor, &info) == 0 || info.dli_fname == nullptr) return {};
  // A program that was found through PATH goes by its bare name.
  const bool bare = std::string_view(info.dli_fname).find('/') == std::string_view::npos;
  const std::filesystem::path path = bare ? "/proc/self/exe" : info.dli_fname;
  std::error_code ignored;  // a path that cannot be made canonical is used as it is
  const std::filesystem::path canonical = std::filesystem::weakly_canonical(path, ignored);
  return (canonical.empty() ? path : canonical).parent_path();
}

/// The entries of a directory in order of their names; none if it cannot be read.
std::vector<std::filesystem::path> entries(const std::filesystem::path& directory) {
  std::error_code ignored;  // a directory that cannot be read holds nothing for us
  std::vector<std::filesystem::path> result;
  for (std::filesystem::directory_iterator entry(directory, ignored), end; entry != end; entry.increment(ignored)) {
    if (ignored) break;
    result.push_back(entry->path());
  }
  std::sort(result.begin(), result.end());
  return result;
}

std::vector<std::filesystem::path> search_directories() {
  const std::filesystem::path directory = code_directory();
  const std::filesystem::path lib = directory / ".." / "lib";
  // This code may be inside the package, or a program in `bin` of the installation's prefix.
  std::vector<std::filesystem::path> packages = {directory / ".." / ".."};
  for (const std::filesystem::path& entry : entries(lib)) {
    if (entry.filename().string().starts_with("python3")) packages.push_back(entry / "site-packages");
  }
  std::vector<std::filesystem::path> result = {directory, lib};
  for (const std::filesystem::path& package : packages) {
    result.push_back(package / "sala_export" / "lib");
    result.push_back(package / "onnxruntime" / "capi");
  }
  return result;
}

std::vector<std::filesystem::path> candidates(const std::filesystem::path& path) {
  if (!path.empty()) return {path};
  std::vector<std::filesystem::path> result;
  if (auto found = find_library(kLibraryNames[1]); !found.empty()) result.push_back(std::move(found));
  result.insert(result.end(), std::begin(kLibraryNames), std::end(kLibraryNames));
  return result;
}

}  // namespace

std::filesystem::path find_library(const std::string& name) {
  for (const std::filesystem::path& directory : search_directories()) {
    for (const std::filesystem::path& entry : entries(directory)) {
      if (entry.filename().string().starts_with(name)) return entry.lexically_normal();
    }
  }
  return {};
}

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
                 "): install the Python package onnxruntime, or give the path of libonnxruntime.so");
  }
  const auto get_base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  if (get_base == nullptr) {
    return error(ErrorCode::kLibraryUnusable, path.string(), " is not ONNX Runtime: it lacks OrtGetApiBase");
  }
  const OrtApi* api = get_base()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    return error(ErrorCode::kLibraryUnusable, "ONNX Runtime is version ", get_base()->GetVersionString(),
                 ", at least 1.", ORT_API_VERSION, " is needed: update onnxruntime");
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
