#include "base/library_search.h"

#include <dlfcn.h>

#include <algorithm>
#include <string_view>
#include <vector>

namespace sala {

namespace {

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

std::vector<std::filesystem::path> search_directories(const std::string& package_folder) {
  const std::filesystem::path directory = code_directory();
  const std::filesystem::path lib = directory / ".." / "lib";
  // This code may be inside the package, or a program in `bin` of the installation's prefix.
  std::vector<std::filesystem::path> packages = {directory / ".." / ".."};
  for (const std::filesystem::path& entry : entries(lib)) {
    if (entry.filename().string().starts_with("python3")) packages.push_back(entry / "site-packages");
  }
  std::vector<std::filesystem::path> result = {directory, lib};
  for (const std::filesystem::path& package : packages) result.push_back(package / package_folder);
  return result;
}

}  // namespace

std::filesystem::path find_library(const std::string& name, const std::string& package_folder) {
  for (const std::filesystem::path& directory : search_directories(package_folder)) {
    for (const std::filesystem::path& entry : entries(directory)) {
      if (entry.filename().string().starts_with(name)) return entry.lexically_normal();
    }
  }
  return {};
}

}  // namespace sala
