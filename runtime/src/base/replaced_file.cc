#include "base/replaced_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string_view>

#include "base/replaceable.h"

namespace sala {

namespace {

constexpr const char* kOwner = "owner";
constexpr const char* kContent = "content";
constexpr std::string_view kOwnerLine = "sala-export removes this directory with its next run\n";
constexpr size_t kLongestNameBytes = 200;  // file systems allow 255, and the wrapper's name is longer
constexpr int kMostLinks = 40;
constexpr int kMostAttempts = 1000;
constexpr int64_t kTransferBytes = int64_t{1} << 30;

/// Calls until no signal interrupts.
template <class Call>
auto uninterrupted(Call&& call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

/// Whether an open failed because of what has the name, and not of this process or its disk.
bool is_of_another_kind(int reason) {
  return reason == ENOTDIR || reason == ELOOP || reason == EACCES || reason == EISDIR || reason == ENXIO;
}

bool is_same(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

/// The path behind a chain of links.
std::filesystem::path behind_links(std::filesystem::path path) {
  for (int links = 0; links < kMostLinks; ++links) {
    std::error_code not_a_link;
    const std::filesystem::path to = std::filesystem::read_symlink(path, not_a_link);
    if (not_a_link) break;
    path = to.is_absolute() ? to : path.parent_path() / to;
  }
  return path;
}

/// What a directory holds, as far as this protocol knows it.
struct Entries {
  bool owner = false;
  bool content = false;
  bool others = false;
};

Expected<Entries> entries_of(int directory, ErrorCode code) {
  // A description of its own, whose position is its own too.
  const int again = uninterrupted([&] { return ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  std::unique_ptr<DIR, int (*)(DIR*)> opened(again < 0 ? nullptr : fdopendir(again), closedir);
  if (!opened) {
    const Error failed = error(code, std::strerror(errno));
    if (again >= 0) ::close(again);
    return failed;
  }
  Entries entries;
  while (const dirent* entry = readdir(opened.get())) {
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    (name == kOwner ? entries.owner : name == kContent ? entries.content : entries.others) = true;
  }
  return entries;
}

/// The content of a file `owner`, as far as it is one of ours; nothing if it is something else.
std::optional<std::string> owner_line(int owner) {
  std::string text(kOwnerLine.size() + 1, '\0');
  struct stat status;
  ssize_t count = -1;
  if (fstat(owner, &status) == 0 && S_ISREG(status.st_mode)) count = ::pread(owner, text.data(), text.size(), 0);
  if (count < 0) return std::nullopt;
  text.resize(static_cast<size_t>(count));
  return text;
}

bool write_owner(int owner) {
  const ssize_t count = uninterrupted([&] { return ::pwrite(owner, kOwnerLine.data(), kOwnerLine.size(), 0); });
  if (count >= 0 && count != static_cast<ssize_t>(kOwnerLine.size())) errno = ENOSPC;
  return count == static_cast<ssize_t>(kOwnerLine.size()) && fsync(owner) == 0;
}

std::string mebibytes(uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

ReplacedFile::Descriptor::~Descriptor() {
  if (number_ >= 0) ::close(number_);
}

Error ReplacedFile::failed(const std::string& what) const {
  return error(code_, path_.string(), " cannot be written: ", what);
}

Error ReplacedFile::not_ours() const {
  return failed((folder_path_ / wrapper_name_).string() +
                " is in the way and holds something else: move it away, or choose another path");
}

Expected<ReplacedFile> ReplacedFile::open(const std::filesystem::path& path, ErrorCode if_failed) {
  auto opened = try_open(path, if_failed);
  if (!opened) return opened.error();
  if (!*opened) {
    return error(if_failed, "another process is writing ", path.string(), ": wait for it, or choose another path");
  }
  return **std::move(opened);
}

Expected<std::optional<ReplacedFile>> ReplacedFile::try_open(const std::filesystem::path& path, ErrorCode if_failed) {
  ReplacedFile file(path, if_failed);
  SALA_RETURN_IF_ERROR(file.find());
  const auto is_locked = file.lock();
  if (!is_locked) return is_locked.error();
  if (!*is_locked) return std::optional<ReplacedFile>();
  SALA_RETURN_IF_ERROR(file.take_over());
  file.process_ = getpid();  // from here on it is ours to remove
  if (!write_owner(file.owner_.get())) return file.failed(std::strerror(errno));
  SALA_RETURN_IF_ERROR(file.begin());
  return std::optional(std::move(file));
}

ReplacedFile::~ReplacedFile() {
  if (wrapper_.is_open() && process_ == getpid()) remove();
}

Status ReplacedFile::find() {
  if (path_.native().find('\0') != std::string::npos) return failed("its path has a zero byte");
  // Another process may put a file in its place between two looks at it.
  for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
    struct stat status, found;
    const bool is_there = stat(path_.c_str(), &status) == 0;
    if (!is_there && errno != ENOENT) return failed(std::strerror(errno));
    if (is_there && !S_ISREG(status.st_mode)) {
      return failed(std::string("it is ") + kind_of(status.st_mode) + ": give the path of a file");
    }
    SALA_RETURN_IF_ERROR(open_folder());
    if (is_there &&
        (fstatat(folder_.get(), name_.c_str(), &found, AT_SYMLINK_NOFOLLOW) != 0 || !is_same(status, found))) {
      continue;
    }
    const auto obstacle = obstacle_to_replacing(folder_.get(), name_);
    return obstacle ? Status(failed(*obstacle)) : success();
  }
  return failed("it is a link that no file can be written through: give the path of a file");
}

Status ReplacedFile::open_folder() {
  const std::filesystem::path target = behind_links(path_);
  name_ = target.filename().string();
  folder_path_ = target.has_parent_path() ? target.parent_path() : std::filesystem::path(".");
  if (name_.empty() || name_ == "." || name_ == "..") return failed("it names no file: give the path of a file");
  if (name_.size() > kLongestNameBytes) {
    return failed("choose a name of at most " + std::to_string(kLongestNameBytes) + " bytes");
  }
  wrapper_name_ = "." + name_ + ".partial";
  folder_ = Descriptor(uninterrupted([&] { return ::open(folder_path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (!folder_.is_open()) return failed("folder " + folder_path_.string() + ": " + std::strerror(errno));
  return success();
}

Expected<bool> ReplacedFile::lock() {
  for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
    const bool is_new = ::mkdirat(folder_.get(), wrapper_name_.c_str(), 0700) == 0;
    if (!is_new && errno != EEXIST) return failed(std::strerror(errno));
    const auto refused = [&](int reason) {
      if (!is_new) return is_of_another_kind(reason) ? not_ours() : failed(std::strerror(reason));
      ::unlinkat(folder_.get(), wrapper_name_.c_str(), AT_REMOVEDIR);
      return failed(std::strerror(reason));
    };
    constexpr int kFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    Descriptor wrapper(uninterrupted([&] { return ::openat(folder_.get(), wrapper_name_.c_str(), kFlags); }));
    if (!wrapper.is_open() && errno == ENOENT) continue;  // another process was done with it just now
    if (!wrapper.is_open()) return refused(errno);
    if (!is_new) SALA_RETURN_IF_ERROR(check_found(wrapper.get()));
    // A file, and open for writing: NFS locks nothing else.
    constexpr int kOwnerFlags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    Descriptor owner(uninterrupted([&] { return ::openat(wrapper.get(), kOwner, kOwnerFlags, 0600); }));
    if (!owner.is_open() && errno == ENOENT) continue;
    if (!owner.is_open()) return refused(errno);
    if (uninterrupted([&] { return ::flock(owner.get(), LOCK_EX | LOCK_NB); }) != 0) {
      if (errno == EWOULDBLOCK) return false;
      const int reason = errno;
      if (is_new) ::unlinkat(wrapper.get(), kOwner, 0);
      return refused(reason);
    }
    const std::string name = wrapper_name_ + "/" + kOwner;
    struct stat ours, named;
    if (fstat(owner.get(), &ours) == 0 && fstatat(folder_.get(), name.c_str(), &named, AT_SYMLINK_NOFOLLOW) == 0 &&
        is_same(ours, named)) {
      wrapper_ = std::move(wrapper);
      owner_ = std::move(owner);
      return true;
    }
  }
  return false;
}

Status ReplacedFile::check_found(int wrapper) const {
  struct stat status;
  // Whoever made it could put something else in the place of what is written there.
  if (fstat(wrapper, &status) != 0 || status.st_uid != geteuid()) return not_ours();
  const auto entries = entries_of(wrapper, code_);
  if (!entries) return failed(entries.error().message);
  if (!entries->owner && (entries->content || entries->others)) return not_ours();
  return success();
}

Status ReplacedFile::take_over() {
  const auto entries = entries_of(wrapper_.get(), code_);
  if (!entries) return failed(entries.error().message);
  const auto line = owner_line(owner_.get());
  const bool is_cut_short = line && line->empty() && !entries->content;  // killed at its first instant
  if (entries->others || (line != kOwnerLine && !is_cut_short)) return not_ours();
  // A directory stays: it is work that another command can go on with.
  if (entries->content && ::unlinkat(wrapper_.get(), kContent, 0) != 0) {
    return is_of_another_kind(errno) ? not_ours() : failed(std::strerror(errno));
  }
  return success();
}

Status ReplacedFile::require_allowed(int64_t bytes) const {
  struct rlimit limit;
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return success();
  if (static_cast<uint64_t>(bytes) <= limit.rlim_cur) return success();
  return failed("it takes " + std::to_string(bytes) + " bytes, and this process may write files of at most " +
                std::to_string(limit.rlim_cur) + " (ulimit -f): raise that limit");
}

Status ReplacedFile::require_room(int64_t bytes) const {
  SALA_RETURN_IF_ERROR(require_allowed(bytes));
  struct statvfs disk;
  if (fstatvfs(folder_.get(), &disk) != 0) return failed(std::strerror(errno));
  if (disk.f_blocks == 0) return success();  // a file system that does not count
  const uint64_t block = disk.f_frsize;
  const uint64_t blocks = (static_cast<uint64_t>(bytes) + block - 1) / block;
  if (blocks <= disk.f_bavail) return success();
  return failed("it takes " + mebibytes(static_cast<uint64_t>(bytes) + (1 << 20) - 1) + ", and its disk has " +
                mebibytes(disk.f_bavail * block) + " free: free some, or choose another path");
}

Status ReplacedFile::begin() {
  if (!wrapper_.is_open()) {
    return error(ErrorCode::kInvalidArgument, path_.string(), " has been written already: open it once more");
  }
  bytes_ = 0;
  if (content_.is_open()) {
    if (ftruncate(content_.get(), 0) != 0) return failed(std::strerror(errno));
    return success();
  }
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  content_ = Descriptor(uninterrupted([&] { return ::openat(wrapper_.get(), kContent, kFlags, 0666); }));
  if (!content_.is_open()) return failed(std::strerror(errno));
  return success();
}

Status ReplacedFile::write(const void* from, int64_t bytes) {
  SALA_RETURN_IF_ERROR(write_at(bytes_, from, bytes));
  bytes_ += bytes;
  return success();
}

Status ReplacedFile::write_at(int64_t offset, const void* from, int64_t bytes) {
  const char* next = static_cast<const char*>(from);
  while (bytes > 0) {
    const auto most = static_cast<size_t>(std::min(bytes, kTransferBytes));
    const ssize_t count = uninterrupted([&] { return ::pwrite(content_.get(), next, most, offset); });
    if (count < 0) return failed(std::strerror(errno));
    next += count;
    offset += count;
    bytes -= count;
  }
  return success();
}

Status ReplacedFile::keep_attributes() {
  struct stat replaced;
  if (fstatat(folder_.get(), name_.c_str(), &replaced, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(replaced.st_mode)) {
    return failed("something else than a file has taken its place");
  }
  const std::string path = (folder_path_ / name_).string();
  return take_over_attributes(content_.get(), folder_.get(), name_, path) ? success()
                                                                          : Status(failed(std::strerror(errno)));
}

Status ReplacedFile::commit() {
  SALA_RETURN_IF_ERROR(keep_attributes());
  if (uninterrupted([&] { return fsync(content_.get()); }) != 0) return failed(std::strerror(errno));
  if (renameat(wrapper_.get(), kContent, folder_.get(), name_.c_str()) != 0) return failed(std::strerror(errno));
  // EINVAL: this file system brings folders to the disk without being asked.
  const bool is_on_disk = uninterrupted([&] { return fsync(folder_.get()); }) == 0 || errno == EINVAL;
  const int reason = errno;
  remove();
  if (!is_on_disk) return failed(std::string("its folder cannot be brought to the disk: ") + std::strerror(reason));
  return success();
}

void ReplacedFile::abandon() noexcept {
  if (content_.is_open() && ftruncate(content_.get(), 0) != 0) return;  // `begin` meets and tells it
}

void ReplacedFile::remove() noexcept {
  ::unlinkat(wrapper_.get(), kContent, 0);
  ::unlinkat(wrapper_.get(), kOwner, 0);
  ::unlinkat(folder_.get(), wrapper_name_.c_str(), AT_REMOVEDIR);
  content_ = Descriptor();
  wrapper_ = Descriptor();
  owner_ = Descriptor();
}

}  // namespace sala
