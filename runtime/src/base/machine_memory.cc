#include "base/machine_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace sala {

namespace {

namespace fs = std::filesystem;

void lower(std::optional<int64_t>& limit, int64_t bytes) { limit = std::min(limit.value_or(bytes), bytes); }

/// `MemTotal` of /proc/meminfo.
std::optional<int64_t> machine_bytes(const fs::path& root) {
  std::ifstream file(root / "proc/meminfo");
  for (std::string name, rest; file >> name; std::getline(file, rest)) {
    int64_t kibibytes = 0;
    if (name != "MemTotal:" || !(file >> kibibytes)) continue;
    return kibibytes * 1024;
  }
  return std::nullopt;
}

/// The limits of a control group and of those around it. A file that is missing or says `max` limits nothing.
void lower_by_groups(std::optional<int64_t>& limit, const fs::path& mount, fs::path group, const char* file) {
  for (group = group.relative_path();; group = group.parent_path()) {
    int64_t bytes = 0;
    if (std::ifstream(mount / group / file) >> bytes) lower(limit, bytes);
    if (group.empty()) return;
  }
}

}  // namespace

std::optional<int64_t> memory_limit(const fs::path& root) {
  std::optional<int64_t> limit = machine_bytes(root);
  std::ifstream groups(root / "proc/self/cgroup");
  // `0::/group` in version 2, `5:memory:/group` in version 1.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const fs::path group = line.substr(second + 1);
    const fs::path mount = root / "sys/fs/cgroup";
    if (controllers.empty()) lower_by_groups(limit, mount, group, "memory.max");
    if (controllers == "memory") lower_by_groups(limit, mount / "memory", group, "memory.limit_in_bytes");
  }
  return limit;
}

}  // namespace sala
