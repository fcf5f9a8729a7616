#include "base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace sala {

namespace {

// The largest transfer that every system takes in one call.
constexpr int64_t kTransferBytes = int64_t{1} << 30;

int open_descriptor(const std::filesystem::path& path, int flags) {
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

}  // namespace

Error File::failed(const char* action) const {
  return sala::error(code_, path_.string(), " cannot be ", action, ": ", std::strerror(errno));
}

Expected<File> File::open(const std::filesystem::path& path, ErrorCode if_failed) {
  // O_NONBLOCK does nothing to a file, and does not wait for the other end of what is none.
  File file(path, open_descriptor(path, O_RDONLY | O_NONBLOCK), if_failed);
  struct stat status;
  if (file.descriptor_ < 0 || fstat(file.descriptor_, &status) != 0) return file.failed("opened");
  if (!S_ISREG(status.st_mode)) return sala::error(if_failed, path.string(), " is not a file");
  file.bytes_ = status.st_size;
  return file;
}

Expected<File> File::create(const std::filesystem::path& path, ErrorCode if_failed) {
  File file(path, open_descriptor(path, O_WRONLY | O_CREAT | O_EXCL), if_failed);
  if (file.descriptor_ < 0) return file.failed("created");
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

Status File::write(const void* from, int64_t bytes) {
  const char* next = static_cast<const char*>(from);
  while (bytes > 0) {
    const ssize_t count = ::write(descriptor_, next, static_cast<size_t>(std::min(bytes, kTransferBytes)));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return failed("written");
    next += count;
    bytes -= count;
  }
  return success();
}

Status File::flush() {
  if (fsync(descriptor_) != 0) return failed("written");
  return success();
}

Expected<std::string> read_file(const std::filesystem::path& path, int64_t limit_bytes, ErrorCode if_failed) {
  auto file = File::open(path, if_failed);
  if (!file) return file.error();
  if (file->bytes() > limit_bytes) {
    return error(if_failed, path.string(), " has ", file->bytes(), " bytes, expected at most ", limit_bytes);
  }
  std::string text(static_cast<size_t>(file->bytes()), '\0');
  SALA_RETURN_IF_ERROR(file->read(0, text.data(), file->bytes()));
  return text;
}

}  // namespace sala
