// Files that are used where they lie, without a copy in memory.
//
// If a file is cut short, or its disk fails, the system tells a program that reads the mapping by the signal SIGBUS,
// which ends the process. So the first mapping installs a handler: it puts zeros in the place of what is gone, and the
// mapping says so from then on. It passes all other SIGBUS on to the handler that was there before.

#pragma once

#include <cstdint>
#include <ctime>
#include <memory>

#include "base/file.h"
#include "sala/status.h"

namespace sala {

/// The whole of a file, for reading. It stays mapped as long as this object lives: let whoever reads share it.
class MappedFile {
 public:
  /// Null if the file is empty, or the system cannot map it: some file systems have no mappings.
  static std::shared_ptr<const MappedFile> map(std::shared_ptr<const File> file);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  /// `File::bytes` of them.
  const char* data() const { return data_; }

  /// Whether what was read since the mapping was made is what the file had then. An error of the file's code if the
  /// file was cut short or written to, or could not be read.
  Status check() const;

  /// What the handler of SIGBUS knows of a mapping.
  struct Range;

 private:
  MappedFile(std::shared_ptr<const File> file, const char* data, timespec written);

  std::shared_ptr<const File> file_;
  const char* data_;
  timespec written_;  // when the file was last written to
  Range* range_;
};

}  // namespace sala
