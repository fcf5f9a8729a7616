// Files that appear whole or not at all.
//
// What is written lies in a directory beside the file, `.NAME.partial`, in `content`. Its file `owner` is locked
// (flock) for as long as somebody writes, so that a second writer is refused, and what a killed writer left is known by
// its lock being free. It says whose the directory is: nothing else is ever taken over or removed. In Python,
// sala_export/staging.py follows the same rules, and each sees the other's locks.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "sala/status.h"

namespace sala {

class ReplacedFile {
 public:
  /// Takes the place of a file that is there or will be: from now on no other process writes it. A link is written
  /// through. An error of code `if_failed` for what is no file, for a missing or read-only folder, and while another
  /// process writes it.
  static Expected<ReplacedFile> open(const std::filesystem::path& path, ErrorCode if_failed);
  /// The same, but nothing while another process writes it.
  static Expected<std::optional<ReplacedFile>> try_open(const std::filesystem::path& path, ErrorCode if_failed);

  ReplacedFile(ReplacedFile&&) noexcept = default;
  ReplacedFile& operator=(ReplacedFile&&) = delete;
  /// Leaves everything as it was, unless there was a `commit`.
  ~ReplacedFile();

  const std::filesystem::path& path() const { return path_; }

  /// An error if the disk has no room for so many bytes, or this process may not write so large a file.
  Status require_room(int64_t bytes) const;
  /// The second half of `require_room`, which holds without doubt.
  Status require_allowed(int64_t bytes) const;

  /// Begins with an empty file, also after a failure. kInvalidArgument after a `commit`.
  Status begin();
  /// Appends.
  Status write(const void* from, int64_t bytes);
  /// Overwrites what was written at `offset`.
  Status write_at(int64_t offset, const void* from, int64_t bytes);
  /// Puts what was written in the place of the file, on the disk too, with the mode and, where that is possible, the
  /// owner of what was there. After a failure what was there is untouched.
  Status commit();
  /// Gives the room of an unfinished file back.
  void abandon() noexcept;

 private:
  /// Owns a descriptor.
  class Descriptor {
   public:
    explicit Descriptor(int number = -1) : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
      std::swap(number_, other.number_);
      return *this;
    }
    ~Descriptor();
    int get() const { return number_; }
    bool is_open() const { return number_ >= 0; }

   private:
    int number_;
  };

  ReplacedFile(std::filesystem::path path, ErrorCode code) : path_(std::move(path)), code_(code) {}
  Error failed(const std::string& what) const;
  Error not_ours() const;
  /// Finds the folder and the name in it, behind all links, and refuses what no file can replace.
  Status find();
  Status open_folder();
  /// Whether the wrapper is ours to write in, and not another process's.
  Expected<bool> lock();
  /// Refuses a wrapper that was there before and is plainly not ours.
  Status check_found(int wrapper) const;
  Status take_over();
  /// Makes `content` like the file that it replaces.
  Status keep_attributes();
  void remove() noexcept;

  std::filesystem::path path_;
  ErrorCode code_;
  std::filesystem::path folder_path_;
  std::string name_;
  std::string wrapper_name_;
  Descriptor folder_;
  Descriptor wrapper_;
  Descriptor owner_;  // holds the lock
  Descriptor content_;
  int64_t bytes_ = 0;  // appended so far
  pid_t process_ = 0;  // a child that inherits this object removes nothing
};

}  // namespace sala
