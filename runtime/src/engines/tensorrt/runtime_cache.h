// What TensorRT for RTX compiled for this GPU, kept in a file between runs.

#pragma once

#include <filesystem>
#include <mutex>
#include <string>

#include "engines/tensorrt/interface.h"
#include "sala/status.h"

namespace sala::tensorrt {

/// One cache for all contexts. Safe to use from several threads.
class RuntimeCache {
 public:
  RuntimeCache(const Interface& interface, std::filesystem::path file)
      : interface_(interface), file_(std::move(file)) {}

  /// Sets the cache on an IRuntimeConfig; the first call makes it and reads the file. A file that TensorRT does not
  /// take, because another version or GPU wrote it, is written anew by `save`.
  Status attach(void* config);

  /// Writes the file if there is something new and no other process writes it. It appears whole or not at all.
  Status save();

 private:
  const Interface& interface_;
  std::filesystem::path file_;
  std::mutex mutex_;
  Object cache_;
  std::string saved_digest_;  // SHA-256 of the file's contents
};

}  // namespace sala::tensorrt
