// Files by descriptor: positions are 64-bit, errors are statuses.

#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "sala/status.h"

namespace sala {

class File {
 public:
  static Expected<File> open(const std::filesystem::path& path, ErrorCode if_failed);
  /// Fails if the file exists.
  static Expected<File> create(const std::filesystem::path& path, ErrorCode if_failed);

  File(File&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(other.descriptor_), code_(other.code_), bytes_(other.bytes_) {
    other.descriptor_ = -1;
  }
  File& operator=(File&&) = delete;
  ~File();

  int64_t bytes() const { return bytes_; }
  const std::filesystem::path& path() const { return path_; }

  /// Fills `to`; a file that ends before is an error.
  Status read(int64_t offset, void* to, int64_t bytes) const;
  /// Appends.
  Status write(const void* from, int64_t bytes);
  /// Brings what was written to the disk.
  Status flush();

 private:
  File(std::filesystem::path path, int descriptor, ErrorCode code)
      : path_(std::move(path)), descriptor_(descriptor), code_(code) {}
  Error failed(const char* action) const;

  std::filesystem::path path_;
  int descriptor_;
  ErrorCode code_;
  int64_t bytes_ = 0;  // size when opened
};

/// The whole of a file, refused if it has more than `limit_bytes`.
Expected<std::string> read_file(const std::filesystem::path& path, int64_t limit_bytes, ErrorCode if_failed);

}  // namespace sala
