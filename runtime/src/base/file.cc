#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace sala {

namespace {

// The largest transfer that every system takes in one call.
constexpr int64_t kTransferBytes = int64_t{1} << 30;

// O_NONBLOCK does nothing to a file, and does not wait for the other end of what is none.
constexpr int kReadFile = O_RDONLY | O_NONBLOCK | O_NOCTTY;
constexpr int kReadDirectory = O_RDONLY | O_DIRECTORY;

int open_descriptor(const std::filesystem::path& path, int flags, int directory = AT_FDCWD) {
  int descriptor;
  do {
    descriptor = ::openat(directory, path.c_str(), flags | O_CLOEXEC);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

/// `: advice`, unless the errno says nothing of a file, but of who opens it.
std::string advised(std::string_view advice, int reason) {
  const bool is_of_process = reason == EACCES || reason == EPERM || reason == EMFILE || reason == ENFILE;
  return advice.empty() || is_of_process ? "" : ": " + std::string(advice);
}

}  // namespace

Error File::failed(const char* action) const {
  return sala::error(code_, path_.string(), " cannot be ", action, ": ", std::strerror(errno));
}

Expected<File> File::open(const std::filesystem::path& path, ErrorCode if_failed) {
  return opened(File(path, open_descriptor(path, kReadFile), if_failed));
}

Expected<File> File::opened(File file, std::string_view advice) {
  struct stat status;
  if (file.descriptor_ < 0 || fstat(file.descriptor_, &status) != 0) {
    const std::string after = advised(advice, errno);
    return sala::error(file.code_, file.failed("opened").message, after);
  }
  if (!S_ISREG(status.st_mode)) {
    return sala::error(file.code_, file.path_.string(), " is not a file", advised(advice, 0));
  }
  file.bytes_ = status.st_size;
  return file;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status File::read(int64_t offset, void* to, int64_t bytes) const {
  char* next = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t count = ::pread(descriptor_, next, static_cast<size_t>(std::min(bytes, kTransferBytes)), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return failed("read");
    if (count == 0) return sala::error(code_, path_.string(), " ends at byte ", offset, ": it is truncated");
    next += count;
    offset += count;
    bytes -= count;
  }
  return success();
}

Expected<std::string> read_file(const File& file, int64_t limit_bytes) {
  if (file.bytes() > limit_bytes) {
    return error(file.code(), file.path().string(), " has ", file.bytes(), " bytes, expected at most ", limit_bytes);
  }
  std::string text(static_cast<size_t>(file.bytes()), '\0');
  SALA_RETURN_IF_ERROR(file.read(0, text.data(), file.bytes()));
  return text;
}

Expected<std::string> read_file(const std::filesystem::path& path, int64_t limit_bytes, ErrorCode if_failed) {
  const auto file = File::open(path, if_failed);
  if (!file) return file.error();
  return read_file(*file, limit_bytes);
}

Expected<Directory> Directory::open(const std::filesystem::path& path, ErrorCode if_failed, std::string_view advice) {
  Directory directory(path, open_descriptor(path, kReadDirectory), if_failed);
  if (directory.descriptor_ >= 0) return directory;
  const int reason = errno;
  const std::string after = advised(advice, reason);
  if (reason == ENOENT || reason == ENOTDIR) return error(if_failed, path.string(), " is not a directory", after);
  return error(if_failed, path.string(), " cannot be opened: ", std::strerror(reason), after);
}

Expected<Directory> Directory::of(int descriptor, const std::filesystem::path& path, ErrorCode if_failed) {
  struct stat status;
  Directory directory(path, fcntl(descriptor, F_DUPFD_CLOEXEC, 0), if_failed);
  if (directory.descriptor_ >= 0 && fstat(directory.descriptor_, &status) == 0 && S_ISDIR(status.st_mode)) {
    return directory;
  }
  return error(if_failed, path.string(), ": descriptor ", descriptor, " is not that of a directory");
}

Directory::~Directory() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Expected<File> Directory::open(const std::filesystem::path& name, std::string_view advice) const {
  return File::opened(File(path_ / name, open_descriptor(name, kReadFile, descriptor_), code_), advice);
}

bool Directory::has(const std::filesystem::path& name) const {
  struct stat status;
  return fstatat(descriptor_, name.c_str(), &status, 0) == 0;
}

Expected<std::vector<std::string>> Directory::names() const {
  // A descriptor of its own: how far a listing has come belongs to it.
  const int descriptor = open_descriptor(".", kReadDirectory, descriptor_);
  const std::unique_ptr<DIR, int (*)(DIR*)> listing(descriptor < 0 ? nullptr : fdopendir(descriptor), closedir);
  if (!listing) {
    const Error failure = error(code_, path_.string(), " cannot be read: ", std::strerror(errno));
    if (descriptor >= 0) ::close(descriptor);
    return failure;
  }
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = readdir(listing.get())) names.emplace_back(entry->d_name);
  if (errno != 0) return error(code_, path_.string(), " cannot be read: ", std::strerror(errno));
  return names;
}

}  // namespace sala
