// Files that appear whole or not at all: what they replace, what they refuse, and what a killed writer leaves.

#include "base/replaced_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace sala {
namespace {

namespace fs = std::filesystem;

constexpr ErrorCode kCode = ErrorCode::kStateUnwritable;
constexpr const char* kOwnerLine = "sala-export removes this directory with its next run\n";

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

mode_t mode_of(const fs::path& path) {
  struct stat status{};
  EXPECT_EQ(stat(path.c_str(), &status), 0) << path;
  return status.st_mode & 07777;
}

class ReplacedFiles : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    path_ = folder_ / "out";
    wrapper_ = folder_ / ".out.partial";
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::set<std::string> names() const {
    std::set<std::string> all;
    for (const auto& entry : fs::directory_iterator(folder_)) all.insert(entry.path().filename().string());
    return all;
  }

  static Status replace(const fs::path& path, const std::string& text) {
    auto file = ReplacedFile::open(path, kCode);
    if (!file) return file.error();
    SALA_RETURN_IF_ERROR(file->write(text.data(), static_cast<int64_t>(text.size())));
    return file->commit();
  }

  /// The refusal of a path, which leaves the folder as it was.
  std::string refusal(const fs::path& path) const {
    const auto before = names();
    const auto file = ReplacedFile::open(path, kCode);
    EXPECT_EQ(names(), before) << path;
    if (file) return "it was opened";
    EXPECT_EQ(file.error().code, kCode);
    return file.error().message;
  }

  void expect_refused(const fs::path& path, const std::string& part) const {
    const std::string message = refusal(path);
    EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }

  /// Runs `work` in a process of its own, which is then killed.
  template <class Work>
  static void in_killed_process(Work&& work) {
    const pid_t child = fork();
    if (child == 0) {
      work();
      kill(getpid(), SIGKILL);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status));
  }

  fs::path folder_;
  fs::path path_;
  fs::path wrapper_;
};

TEST_F(ReplacedFiles, ANewFileHasTheUsualModeAndNothingElseIsLeft) {
  const mode_t before = umask(027);
  ASSERT_TRUE(replace(path_, "new"));
  umask(before);
  EXPECT_EQ(text_of(path_), "new");
  EXPECT_EQ(mode_of(path_), 0640u);
  EXPECT_EQ(names(), std::set<std::string>{"out"});
}

TEST_F(ReplacedFiles, AReplacedFileKeepsItsModeAndOwner) {
  write_text(path_, "old");
  fs::permissions(path_, fs::perms(0604));
  if (getuid() == 0) {
    ASSERT_EQ(chown(path_.c_str(), 1234, 4321), 0);
  }
  struct stat before{}, after{};
  stat(path_.c_str(), &before);
  ASSERT_TRUE(replace(path_, "new"));
  stat(path_.c_str(), &after);
  EXPECT_EQ(text_of(path_), "new");
  EXPECT_EQ(after.st_mode, before.st_mode);
  EXPECT_EQ(after.st_uid, before.st_uid);
  EXPECT_EQ(after.st_gid, before.st_gid);
}

TEST_F(ReplacedFiles, AFileThatCannotBeGivenAwayDoesNotRunAsItsWriter) {
  if (getuid() != 0) GTEST_SKIP() << "only root can change who it is";
  write_text(path_, "old");
  chmod(folder_.c_str(), 0777);
  chmod(path_.c_str(), 06777);
  ASSERT_EQ(seteuid(1234), 0);
  const Status done = replace(path_, "new");
  ASSERT_EQ(seteuid(0), 0);
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(text_of(path_), "new");
  EXPECT_EQ(mode_of(path_), 0777u);
}

TEST_F(ReplacedFiles, AnotherUsersFileInAStickyFolderIsRefusedAtOnce) {
  if (getuid() != 0) GTEST_SKIP() << "only root can change who it is";
  write_text(path_, "old");
  chmod(folder_.c_str(), 01777);
  chmod(path_.c_str(), 0666);
  ASSERT_EQ(seteuid(1234), 0);
  const auto of_root = ReplacedFile::open(path_, kCode);
  ASSERT_EQ(seteuid(0), 0);
  ASSERT_FALSE(of_root);
  EXPECT_NE(of_root.error().message.find("it is another user's"), std::string::npos) << of_root.error().message;
  EXPECT_EQ(names(), std::set<std::string>{"out"});
  ASSERT_EQ(chown(path_.c_str(), 1234, 1234), 0);
  ASSERT_EQ(seteuid(1234), 0);
  const Status own = replace(path_, "own");
  ASSERT_EQ(seteuid(0), 0);
  EXPECT_TRUE(own);
  EXPECT_TRUE(replace(path_, "of anybody, by root"));
}

TEST_F(ReplacedFiles, WhatTheDiskDoesNotGiveAwayIsRefusedAtOnce) {
  write_text(path_, "old");
  const auto mark = [](const fs::path& path, int flags) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const bool is_marked = ioctl(descriptor, FS_IOC_SETFLAGS, &flags) == 0;
    close(descriptor);
    return is_marked;
  };
  if (!mark(path_, FS_APPEND_FL)) GTEST_SKIP() << "this disk or this user marks no files: " << std::strerror(errno);
  expect_refused(path_, "it may not be replaced");
  ASSERT_TRUE(mark(path_, FS_IMMUTABLE_FL));
  expect_refused(path_, "");
  ASSERT_TRUE(mark(path_, 0));
  ASSERT_TRUE(mark(folder_, FS_APPEND_FL));
  expect_refused(path_, "its folder takes files and gives none away");
  expect_refused(folder_ / "other", "its folder takes files and gives none away");
  ASSERT_TRUE(mark(folder_, 0));
  EXPECT_EQ(text_of(path_), "old");
  EXPECT_EQ(names(), std::set<std::string>{"out"});
}

TEST_F(ReplacedFiles, AnAccessControlListIsKept) {
  // Version 2 of the kernel's form, then tag, rights and id of the owner, user 1234, the group, the mask,
  // others.
  const std::vector<uint16_t> list = {2, 0,      0x01,   6,    0xffff, 0xffff, 0x02,   6,    1234, 0,      0x04,
                                      0, 0xffff, 0xffff, 0x10, 6,      0xffff, 0xffff, 0x20, 0,    0xffff, 0xffff};
  const size_t bytes = list.size() * sizeof list[0];
  constexpr const char* kList = "system.posix_acl_access";
  write_text(path_, "old");
  if (setxattr(path_.c_str(), kList, list.data(), bytes, 0) != 0) GTEST_SKIP() << "this disk has no such lists";
  ASSERT_EQ(mode_of(path_), 0660u) << "the group's bits are those of the mask";
  ASSERT_TRUE(replace(path_, "new"));
  std::vector<uint16_t> kept(list.size());
  EXPECT_EQ(getxattr(path_.c_str(), kList, kept.data(), bytes), static_cast<ssize_t>(bytes));
  EXPECT_EQ(kept, list);
  // The folder gives new files one. A file that had none keeps none.
  ASSERT_EQ(setxattr(folder_.c_str(), "system.posix_acl_default", list.data(), bytes, 0), 0);
  ASSERT_EQ(removexattr(path_.c_str(), kList), 0);
  chmod(path_.c_str(), 0640);
  ASSERT_TRUE(replace(path_, "newer"));
  EXPECT_LT(getxattr(path_.c_str(), kList, kept.data(), bytes), 0);
  EXPECT_EQ(mode_of(path_), 0640u);
}

TEST_F(ReplacedFiles, AFileThatIsReplacedMeanwhileIsNotTakenForALink) {
  const fs::path other = folder_ / "other";
  std::atomic<bool> ends = false;
  write_text(path_, "old");
  std::thread replacing([&] {
    while (!ends) {
      write_text(other, "new");
      fs::rename(other, path_);
    }
  });
  for (int i = 0; i < 2000; ++i) {
    const auto file = ReplacedFile::open(path_, kCode);
    EXPECT_TRUE(file) << file.error().message;
  }
  ends = true;
  replacing.join();
}

TEST_F(ReplacedFiles, AWrapperOfAnotherUserIsNotTaken) {
  if (getuid() != 0) GTEST_SKIP() << "only root can give a folder away";
  fs::create_directory(wrapper_);
  ASSERT_EQ(chown(wrapper_.c_str(), 1234, 1234), 0);
  expect_refused(path_, "in the way");
  EXPECT_TRUE(fs::is_empty(wrapper_));
}

TEST_F(ReplacedFiles, WithoutADescriptorThereIsAReasonAndNothingLeft) {
  // The lowest free number is the folder's. There is none for the wrapper.
  const int next = dup(0);
  close(next);
  struct rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  struct rlimit tight = before;
  tight.rlim_cur = static_cast<rlim_t>(next) + 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
  const auto file = ReplacedFile::open(path_, kCode);
  setrlimit(RLIMIT_NOFILE, &before);
  ASSERT_FALSE(file);
  EXPECT_NE(file.error().message.find("Too many open files"), std::string::npos) << file.error().message;
  EXPECT_EQ(names(), std::set<std::string>{});
}

TEST_F(ReplacedFiles, LinksAreWrittenThrough) {
  fs::create_directory(folder_ / "there");
  write_text(folder_ / "there" / "file", "old");
  fs::create_symlink("there/file", folder_ / "one");
  fs::create_symlink(folder_ / "one", folder_ / "two");
  fs::create_symlink("there/new", folder_ / "dangling");
  ASSERT_TRUE(replace(folder_ / "two", "through two"));
  ASSERT_TRUE(replace(folder_ / "dangling", "made"));
  EXPECT_TRUE(fs::is_symlink(folder_ / "two"));
  EXPECT_TRUE(fs::is_symlink(folder_ / "dangling"));
  EXPECT_EQ(text_of(folder_ / "there" / "file"), "through two");
  EXPECT_EQ(text_of(folder_ / "there" / "new"), "made");
}

TEST_F(ReplacedFiles, WhatIsNoFileIsRefusedAndStays) {
  fs::create_directory(folder_ / "directory");
  ASSERT_EQ(mkfifo((folder_ / "fifo").c_str(), 0600), 0);
  fs::create_symlink("fifo", folder_ / "to-fifo");
  fs::create_symlink("/dev/null", folder_ / "to-null");
  fs::create_symlink("b", folder_ / "a");
  fs::create_symlink("a", folder_ / "b");
  fs::create_symlink("nowhere/file", folder_ / "far");
  write_text(folder_ / "file", "x");
  const int end = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{AF_UNIX, {}};
  const std::string socket_path = folder_ / "s";
  ASSERT_LT(socket_path.size(), sizeof address.sun_path);
  socket_path.copy(address.sun_path, socket_path.size());
  ASSERT_EQ(bind(end, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  expect_refused(socket_path, "a socket");
  close(end);
  expect_refused(folder_ / "directory", "a directory");
  expect_refused(folder_, "a directory");
  expect_refused(folder_ / "fifo", "a FIFO");
  expect_refused(folder_ / "to-fifo", "a FIFO");
  expect_refused("/dev/full", "a device");
  expect_refused(folder_ / "to-null", "a device");
  expect_refused(folder_ / "a", "symbolic links");
  expect_refused(folder_ / "far", "nowhere");
  expect_refused(folder_ / "none" / "file", "none");
  expect_refused(folder_ / "file" / "file", "Not a directory");
  expect_refused("", "names no file");
  expect_refused(folder_ / "new/", "names no file");
  expect_refused(folder_ / std::string(201, 'n'), "at most 200 bytes");
  expect_refused(folder_ / std::string("a\0b", 3), "zero byte");
  EXPECT_EQ(text_of(folder_ / "file"), "x");
}

TEST_F(ReplacedFiles, AFileWithoutAPathIsRefused) {
  write_text(path_, "x");
  const int file = open(path_.c_str(), O_RDONLY);
  unlink(path_.c_str());
  expect_refused("/proc/self/fd/" + std::to_string(file), "written through");
  close(file);
}

TEST_F(ReplacedFiles, ASecondWriterIsRefusedUntilTheFirstIsDone) {
  fs::create_symlink("out", folder_ / "link");
  {
    auto first = ReplacedFile::open(path_, kCode);
    ASSERT_TRUE(first);
    expect_refused(path_, "another process is writing");
    expect_refused(folder_ / "link", "another process is writing");
    const auto second = ReplacedFile::try_open(path_, kCode);
    ASSERT_TRUE(second);
    EXPECT_FALSE(*second);
    EXPECT_TRUE(replace(folder_ / "other", "x"));
    ASSERT_TRUE(first->commit());
    EXPECT_TRUE(replace(path_, "next"));
  }
  EXPECT_EQ(names(), (std::set<std::string>{"link", "other", "out"}));
}

TEST_F(ReplacedFiles, WithoutACommitNothingChanges) {
  write_text(path_, "old");
  {
    auto file = ReplacedFile::open(path_, kCode);
    ASSERT_TRUE(file);
    ASSERT_TRUE(file->write("new", 3));
  }
  EXPECT_EQ(text_of(path_), "old");
  EXPECT_EQ(names(), std::set<std::string>{"out"});
}

TEST_F(ReplacedFiles, AKilledWriterIsSweptByTheNext) {
  write_text(path_, "old");
  for (int wanted = 0; wanted < 3; ++wanted) {
    in_killed_process([&] {
      // Never destroyed: a killed process runs no destructor.
      auto& file = *new Expected<ReplacedFile>(ReplacedFile::open(path_, kCode));
      if (wanted > 0) static_cast<void>(file->write("half", 4));
      if (wanted > 1) unlink((wrapper_ / "owner").c_str()), unlink((wrapper_ / "content").c_str());
    });
    EXPECT_TRUE(fs::exists(wrapper_));
    EXPECT_EQ(text_of(path_), "old");
    ASSERT_TRUE(replace(path_, "old"));
    EXPECT_EQ(names(), std::set<std::string>{"out"});
  }
}

TEST_F(ReplacedFiles, AChildThatInheritsOneRemovesNothing) {
  auto file = ReplacedFile::open(path_, kCode);
  ASSERT_TRUE(file);
  const pid_t child = fork();
  if (child == 0) {
    {
      const ReplacedFile inherited = *std::move(file);
    }
    _exit(0);
  }
  waitpid(child, nullptr, 0);
  ASSERT_TRUE(file->write("kept", 4));
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(text_of(path_), "kept");
}

TEST_F(ReplacedFiles, WhatAKillLeftAtItsFirstInstantIsTakenOver) {
  fs::create_directory(wrapper_);
  EXPECT_TRUE(replace(path_, "x"));
  fs::create_directory(wrapper_);
  write_text(wrapper_ / "owner", "");
  EXPECT_TRUE(replace(path_, "x"));
  EXPECT_EQ(names(), std::set<std::string>{"out"});
}

TEST_F(ReplacedFiles, WhatIsNotOursIsNeverTouched) {
  const auto check = [&](const std::string& owner, const std::string& other, bool is_directory) {
    fs::create_directory(wrapper_);
    if (!owner.empty()) write_text(wrapper_ / "owner", owner == "empty" ? "" : owner);
    if (is_directory) fs::create_directory(wrapper_ / other);
    if (!other.empty() && !is_directory) write_text(wrapper_ / other, "mine");
    expect_refused(path_, "in the way");
    EXPECT_TRUE(fs::exists(wrapper_ / (other.empty() ? "owner" : other))) << other;
    fs::remove_all(wrapper_);
  };
  check("", "thesis.txt", false);
  check("", "content", false);
  check("empty", "content", false);
  check("somebody else", "", false);
  check(std::string(kOwnerLine) + "and more", "content", false);
  check(kOwnerLine, "thesis.txt", false);
  check(kOwnerLine, "content", true);
  write_text(wrapper_, "a file of that name");
  expect_refused(path_, "in the way");
  fs::remove(wrapper_);
  fs::create_directory(folder_ / "elsewhere");
  fs::create_symlink("elsewhere", wrapper_);
  expect_refused(path_, "in the way");
}

TEST_F(ReplacedFiles, TakenByADirectoryMeanwhileItIsLeftAlone) {
  auto file = ReplacedFile::open(path_, kCode);
  ASSERT_TRUE(file);
  fs::create_directory(path_);
  const Status done = file->commit();
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, kCode);
  EXPECT_TRUE(fs::is_directory(path_));
  fs::remove(path_);
  ASSERT_TRUE(file->begin());
  ASSERT_TRUE(file->write("second", 6));
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(text_of(path_), "second");
  EXPECT_EQ(file->begin().error().code, ErrorCode::kInvalidArgument);
}

TEST_F(ReplacedFiles, KnowsTheLimitsOfDiskAndProcess) {
  auto file = ReplacedFile::open(path_, kCode);
  ASSERT_TRUE(file);
  EXPECT_TRUE(file->require_room(1 << 20));
  EXPECT_NE(file->require_room(INT64_MAX).error().message.find("free"), std::string::npos);
  struct rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  struct rlimit tight = before;
  tight.rlim_cur = 4096;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  EXPECT_TRUE(file->require_room(4096));
  EXPECT_NE(file->require_room(4097).error().message.find("ulimit"), std::string::npos);
  const std::string much(8192, 'x');
  EXPECT_EQ(file->write(much.data(), 8192).error().code, kCode);
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  file->abandon();
  ASSERT_TRUE(file->begin());
  ASSERT_TRUE(file->write("fits", 4));
  ASSERT_TRUE(file->write_at(1, "a", 1));
  ASSERT_TRUE(file->commit());
  EXPECT_EQ(text_of(path_), "fats");
}

}  // namespace
}  // namespace sala
