// Limits of memory, as the files of a system tell them.

#include "base/machine_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace sala::test {
namespace {

namespace fs = std::filesystem;

class MachineMemory : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / ("machine-" + std::to_string(getpid()));
    fs::remove_all(root_);
    write("proc/meminfo", "MemTotal:       16000 kB\nMemFree:         10 kB\nMemAvailable:    20 kB\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& content) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << content;
  }

  fs::path root_;
};

TEST_F(MachineMemory, IsThatOfTheMachineWithoutGroups) { EXPECT_EQ(memory_limit(root_), 16000 * 1024); }

TEST_F(MachineMemory, IsLimitedByAGroupAndThoseAroundIt) {
  write("proc/self/cgroup", "0::/outer/inner\n");
  write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
  EXPECT_EQ(memory_limit(root_), 16000 * 1024);
  write("sys/fs/cgroup/outer/memory.max", "5000\n");
  EXPECT_EQ(memory_limit(root_), 5000);
  write("sys/fs/cgroup/outer/inner/memory.max", "4000\n");
  EXPECT_EQ(memory_limit(root_), 4000);
  write("sys/fs/cgroup/memory.max", "3000\n");  // a container sees its own group there
  EXPECT_EQ(memory_limit(root_), 3000);
}

TEST_F(MachineMemory, IsLimitedByGroupsOfVersion1) {
  write("proc/self/cgroup", "7:cpu,cpuacct:/a\n5:memory:/b\n0::/\n");
  write("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(memory_limit(root_), 16000 * 1024);
  write("sys/fs/cgroup/memory/b/memory.limit_in_bytes", "7000\n");
  EXPECT_EQ(memory_limit(root_), 7000);
}

TEST_F(MachineMemory, IsUnknownWhereNothingTells) {
  fs::remove(root_ / "proc/meminfo");
  EXPECT_EQ(memory_limit(root_), std::nullopt);
  EXPECT_GT(memory_limit(), 0) << "of this machine";
}

}  // namespace
}  // namespace sala::test
