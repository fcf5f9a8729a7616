#include "base/replaceable.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

namespace sala {

namespace {

constexpr const char* kAccessList = "system.posix_acl_access";

/// STATX_ATTR_... of what has the name; of the directory itself if the name is empty.
uint64_t attributes_of(int directory, const std::string& name) {
  struct statx status;
  const int flags = AT_SYMLINK_NOFOLLOW | (name.empty() ? AT_EMPTY_PATH : 0);
  return statx(directory, name.c_str(), flags, STATX_TYPE, &status) == 0 ? status.stx_attributes : 0;
}

/// Whether this process may do with any file what its owner may.
bool acts_as_any_owner() {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {};
  return syscall(SYS_capget, &header, data) == 0 && (data[0].effective & (1U << CAP_FOWNER)) != 0;
}

bool is_kept_by_sticky_bit(const struct stat& folder, const struct stat& file) {
  const uid_t user = geteuid();
  return (folder.st_mode & S_ISVTX) != 0 && file.st_uid != user && folder.st_uid != user && !acts_as_any_owner();
}

/// As far as the disk has access control lists, `file` gets that of the file at `path`, or none if that has none.
bool take_over_access_list(int file, const std::string& path) {
  std::vector<char> list(size_t{1} << 16);  // the most that an attribute has
  const ssize_t bytes = lgetxattr(path.c_str(), kAccessList, list.data(), list.size());
  if (bytes >= 0) return fsetxattr(file, kAccessList, list.data(), static_cast<size_t>(bytes), 0) == 0;
  if (errno != ENODATA && errno != ENOTSUP) return false;
  // The folder may give its new files one.
  return fremovexattr(file, kAccessList) == 0 || errno == ENODATA || errno == ENOTSUP;
}

}  // namespace

std::optional<std::string> obstacle_to_replacing(int folder, const std::string& name) {
  constexpr const char* kAppendOnly = "its folder takes files and gives none away (chattr +a): choose another folder";
  if ((attributes_of(folder, "") & STATX_ATTR_APPEND) != 0) return kAppendOnly;
  struct stat file, around;
  if (fstatat(folder, name.c_str(), &file, AT_SYMLINK_NOFOLLOW) != 0 || fstat(folder, &around) != 0) {
    if (errno == ENOENT) return std::nullopt;
    return std::strerror(errno);
  }
  if (faccessat(folder, name.c_str(), W_OK, AT_EACCESS) != 0) return std::strerror(errno);
  const uint64_t attributes = attributes_of(folder, name);
  if ((attributes & STATX_ATTR_MOUNT_ROOT) != 0) {
    return "it is mounted on its own: mount its folder, or choose another path";
  }
  if ((attributes & (STATX_ATTR_APPEND | STATX_ATTR_IMMUTABLE)) != 0) {
    return "it may not be replaced (chattr +a or +i): choose another path";
  }
  if (is_kept_by_sticky_bit(around, file)) {
    return "it is another user's, in a folder where only owners replace files (mode +t): choose another path";
  }
  return std::nullopt;
}

bool take_over_attributes(int file, int folder, const std::string& name, const std::string& path) {
  struct stat replaced, own;
  if (fstatat(folder, name.c_str(), &replaced, AT_SYMLINK_NOFOLLOW) != 0) return errno == ENOENT;
  if (fstat(file, &own) != 0) return false;
  // Few may give a file away. Where it fails, the file stays its writer's, and must not run as the writer.
  const bool is_owner_kept = (own.st_uid == replaced.st_uid && own.st_gid == replaced.st_gid) ||
                             fchown(file, replaced.st_uid, replaced.st_gid) == 0;
  const mode_t mode = replaced.st_mode & (is_owner_kept ? 07777 : 0777);
  if ((own.st_mode & 07777) != mode && fchmod(file, mode) != 0) return false;
  if (take_over_access_list(file, path)) return true;
  // With a list, the group's bits stand for more users than the group.
  return fchmod(file, mode & ~static_cast<mode_t>(S_IRWXG)) == 0;
}

}  // namespace sala
