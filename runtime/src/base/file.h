// Files by descriptor: positions are 64-bit, errors are statuses.

#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sala/status.h"

namespace sala {

class File {
 public:
  /// Fails if it is no regular file, and does not wait for the other end of a FIFO.
  static Expected<File> open(const std::filesystem::path& path, ErrorCode if_failed);

  File(File&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(other.descriptor_), code_(other.code_), bytes_(other.bytes_) {
    other.descriptor_ = -1;
  }
  File& operator=(File&&) = delete;
  ~File();

  int64_t bytes() const { return bytes_; }
  const std::filesystem::path& path() const { return path_; }
  int descriptor() const { return descriptor_; }
  /// Of its errors.
  ErrorCode code() const { return code_; }

  /// Fills `to`; a file that ends before is an error.
  Status read(int64_t offset, void* to, int64_t bytes) const;

 private:
  friend class Directory;
  File(std::filesystem::path path, int descriptor, ErrorCode code)
      : path_(std::move(path)), descriptor_(descriptor), code_(code) {}
  /// Looks at what was opened.
  static Expected<File> opened(File file, std::string_view advice = "");
  Error failed(const char* action) const;

  std::filesystem::path path_;
  int descriptor_;
  ErrorCode code_;
  int64_t bytes_ = 0;  // size when opened
};

/// By name. Several may share a file that is open once.
using OpenedFiles = std::map<std::string, std::shared_ptr<const File>>;

/// The whole of a file, refused if it has more than `limit_bytes`.
Expected<std::string> read_file(const File& file, int64_t limit_bytes);
Expected<std::string> read_file(const std::filesystem::path& path, int64_t limit_bytes, ErrorCode if_failed);

/// A directory whose files are opened relative to itself, whatever takes its name meanwhile.
class Directory {
 public:
  /// Errors end with `advice` as those of the other `open`.
  static Expected<Directory> open(const std::filesystem::path& path, ErrorCode if_failed, std::string_view advice = "");
  /// The one that `descriptor`, which stays the caller's, stands for. `path` is for messages.
  static Expected<Directory> of(int descriptor, const std::filesystem::path& path, ErrorCode if_failed);

  Directory(Directory&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), code_(other.code_) {}
  Directory& operator=(Directory&&) = delete;
  ~Directory();

  const std::filesystem::path& path() const { return path_; }
  /// As `File::open`, of the file of this relative path. The error ends with `advice`, unless this process has no right
  /// to the file, or too many others open.
  Expected<File> open(const std::filesystem::path& name, std::string_view advice = "") const;
  /// Whether something has this relative path.
  bool has(const std::filesystem::path& name) const;
  /// Of everything in it.
  Expected<std::vector<std::string>> names() const;

 private:
  Directory(std::filesystem::path path, int descriptor, ErrorCode code)
      : path_(std::move(path)), descriptor_(descriptor), code_(code) {}

  std::filesystem::path path_;
  int descriptor_;
  ErrorCode code_;
};

}  // namespace sala
