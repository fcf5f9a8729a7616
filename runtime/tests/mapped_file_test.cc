// Files that lose what is mapped of them.

#include "base/mapped_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace sala::test {
namespace {

namespace fs = std::filesystem;

const int64_t kPage = sysconf(_SC_PAGESIZE);
constexpr int64_t kPages = 40;

class MappedFiles : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / ("mapped-" + std::to_string(getpid()));
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  /// A file whose pages are filled with their numbers.
  fs::path write(const std::string& name, int64_t pages = kPages) const {
    std::ofstream file(directory_ / name, std::ios::binary);
    for (int64_t page = 0; page < pages; ++page) {
      file << std::string(static_cast<size_t>(kPage), static_cast<char>(page + 1));
    }
    return directory_ / name;
  }

  static std::shared_ptr<const MappedFile> map(const fs::path& path, ErrorCode code = ErrorCode::kBundleDamaged) {
    auto file = File::open(path, code);
    EXPECT_TRUE(file) << file.error().message;
    return MappedFile::map(std::make_shared<const File>(*std::move(file)));
  }

  static int first_of_page(const MappedFile& file, int64_t page) {
    return static_cast<unsigned char>(*static_cast<const volatile char*>(file.data() + page * kPage));
  }

  static void expect_damaged(const MappedFile& file, const std::string& words) {
    const Status checked = file.check();
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().code, ErrorCode::kBundleDamaged);
    EXPECT_NE(checked.error().message.find(words), std::string::npos) << checked.error().message;
  }

  fs::path directory_;
};

TEST_F(MappedFiles, AreReadWhereTheyLie) {
  const auto file = map(write("a"));
  ASSERT_NE(file, nullptr);
  for (int64_t page = 0; page < kPages; ++page) EXPECT_EQ(first_of_page(*file, page), page + 1);
  EXPECT_TRUE(file->check());
}

TEST_F(MappedFiles, OfNothingAreNotMapped) { EXPECT_EQ(map(write("a", 0)), nullptr); }

TEST_F(MappedFiles, ThatAreCutShortReadAsZeros) {
  const fs::path path = write("a");
  const auto file = map(path), other = map(write("b"));
  EXPECT_EQ(first_of_page(*file, 20), 21);
  fs::resize_file(path, static_cast<uintmax_t>(10 * kPage));
  EXPECT_EQ(first_of_page(*file, 9), 10);
  EXPECT_EQ(first_of_page(*file, 20), 0);
  EXPECT_EQ(first_of_page(*file, kPages - 1), 0);
  EXPECT_EQ(first_of_page(*file, 10), 0);
  expect_damaged(*file, path.string() + " was cut short while it was mapped: it has " + std::to_string(10 * kPage) +
                            " bytes of " + std::to_string(kPages * kPage) +
                            ", copy the bundle again and load it again");
  EXPECT_EQ(first_of_page(*other, 20), 21);
  EXPECT_TRUE(other->check());
}

TEST_F(MappedFiles, ThatAreCutWithinAPageAreDamaged) {
  const fs::path path = write("a");
  const auto file = map(path);
  fs::resize_file(path, static_cast<uintmax_t>(kPages * kPage - 7));
  expect_damaged(*file, " was cut short while it was mapped");
}

TEST_F(MappedFiles, ThatGetTheirEndBackStayDamaged) {
  const fs::path path = write("a");
  const auto file = map(path);
  const auto written = fs::last_write_time(path);
  fs::resize_file(path, 0);
  EXPECT_EQ(first_of_page(*file, 3), 0);
  write("a");
  expect_damaged(*file,
                 " was written to, or its time was set, while it was mapped: copy the bundle again and load it again");
  fs::last_write_time(path, written);
  expect_damaged(*file, " could not be read while it was mapped: look at its disk, then copy the bundle again");
}

TEST_F(MappedFiles, ThatAreWrittenToAreDamaged) {
  const fs::path path = write("a");
  const auto file = map(path, ErrorCode::kWeightsUnsuitable);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // as fine as the clock of a file system is
  std::fstream(path, std::ios::in | std::ios::out) << "x";
  const Status checked = file->check();
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().code, ErrorCode::kWeightsUnsuitable);
  EXPECT_EQ(
      checked.error().message,
      path.string() +
          " was written to, or its time was set, while it was mapped: copy the weights again and load them again");
}

TEST_F(MappedFiles, MayBeReplacedUnderTheirName) {
  const fs::path path = write("a");
  const auto file = map(path);
  fs::rename(write("b", 3), path);
  EXPECT_EQ(first_of_page(*file, 20), 21);
  EXPECT_TRUE(file->check());
}

TEST_F(MappedFiles, AreMappedAgainAfterTheyWereDamaged) {
  for (int turn = 0; turn < 3; ++turn) {
    const fs::path path = write("a");
    const auto file = map(path);
    EXPECT_TRUE(file->check()) << turn;
    EXPECT_EQ(first_of_page(*file, 20), 21);
    fs::resize_file(path, 0);
    EXPECT_EQ(first_of_page(*file, 20), 0);
    EXPECT_FALSE(file->check());
  }
}

TEST_F(MappedFiles, AreCutShortWhileManyThreadsReadAndMapOthers) {
  const fs::path path = write("a"), other = write("b");
  const auto file = map(path);
  std::atomic<bool> ending = false;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      while (!ending) {
        for (int64_t page = 0; page < kPages; ++page) {
          const int found = first_of_page(*file, page);
          ASSERT_TRUE(found == 0 || found == page + 1) << found;
        }
      }
    });
    threads.emplace_back([&] {
      while (!ending) {
        const auto mapped = map(other);
        ASSERT_EQ(first_of_page(*mapped, 5), 6);
        ASSERT_TRUE(mapped->check());
      }
    });
  }
  for (int64_t pages = kPages - 1; pages >= 0; --pages) {
    fs::resize_file(path, static_cast<uintmax_t>(pages * kPage));
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  ending = true;
  threads.clear();
  EXPECT_FALSE(file->check());
}

TEST_F(MappedFiles, AreGuardedInAChildToo) {
  const fs::path path = write("a");
  const auto file = map(path);
  const pid_t child = fork();
  if (child == 0) {
    fs::resize_file(path, 0);
    _exit(first_of_page(*file, 20) == 0 && !file->check() ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

/// Reads behind the end of a file that is mapped by someone else.
void read_behind_the_end(const fs::path& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const auto bytes = static_cast<size_t>(kPages * kPage);
  const void* data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  fs::resize_file(path, 0);
  static_cast<void>(*static_cast<const volatile char*>(data));
}

// Each of these runs in a process of its own, whose handlers are its own too.
class MappedFilesDeathTest : public MappedFiles {
 protected:
  void SetUp() override {
    MappedFiles::SetUp();
    testing::FLAGS_gtest_death_test_style = "threadsafe";
  }
};

TEST_F(MappedFilesDeathTest, LeaveFaultsOfOthersFatal) {
  EXPECT_DEATH(
      {
        const auto file = map(write("a"));
        read_behind_the_end(write("b"));
      },
      "");
}

TEST_F(MappedFilesDeathTest, PassFaultsOfOthersOn) {
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, [](int) { _exit(7); });
        const auto file = map(write("a"));
        read_behind_the_end(write("b"));
      },
      testing::ExitedWithCode(7), "");
}

TEST_F(MappedFilesDeathTest, PassSignalsOfOtherProcessesOn) {
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, SIG_IGN);
        const auto file = map(write("a"));
        std::raise(SIGBUS);
        _exit(3);
      },
      testing::ExitedWithCode(3), "");
  EXPECT_EXIT(
      {
        std::signal(SIGBUS, SIG_DFL);
        const auto file = map(write("a"));
        std::raise(SIGBUS);
      },
      testing::KilledBySignal(SIGBUS), "");
}

}  // namespace
}  // namespace sala::test
