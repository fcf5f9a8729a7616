#include "weights/parallel_load.h"

#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace sala::test {
namespace {

TEST(ParallelLoad, GivesEveryItemToOneThread) {
  std::mutex mutex;
  std::multiset<size_t> seen;
  const Status outcome = load_in_parallel({.items = 1000, .threads = 7}, [&](ParallelLoad& load) -> Status {
    while (const auto item = load.next()) {
      const std::lock_guard lock(mutex);
      seen.insert(*item);
    }
    return success();
  });
  ASSERT_TRUE(outcome);
  EXPECT_EQ(seen.size(), 1000u);
  EXPECT_EQ(std::set<size_t>(seen.begin(), seen.end()).size(), 1000u);
}

TEST(ParallelLoad, TellsOfProgressOnTheThreadThatWaits) {
  std::vector<int64_t> told;
  const auto waiting = std::this_thread::get_id();
  const ParallelLoadOptions options{
      .items = 4, .total_bytes = 40, .threads = 2, .on_progress = [&](int64_t done, int64_t total) {
        EXPECT_EQ(std::this_thread::get_id(), waiting);
        EXPECT_EQ(total, 40);
        told.push_back(done);
        return true;
      }};
  const Status outcome = load_in_parallel(options, [&](ParallelLoad& load) -> Status {
    while (load.next()) {
      SALA_RETURN_IF_ERROR(load.advance(10));
      std::this_thread::sleep_for(std::chrono::milliseconds(120));
    }
    return success();
  });
  ASSERT_TRUE(outcome);
  EXPECT_GE(told.size(), 3u);
  EXPECT_EQ(told.front(), 0);
  EXPECT_TRUE(std::is_sorted(told.begin(), told.end()));
  EXPECT_EQ(told.back(), 40);
}

/// Works until it is told to end.
Status endless(ParallelLoad& load) {
  while (true) {
    SALA_RETURN_IF_ERROR(load.advance(0));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST(ParallelLoad, StopsWhereProgressSaysSo) {
  for (const int stop_at : {1, 2}) {  // before the threads start, and while they work
    int calls = 0;
    const auto told = [&](int64_t, int64_t) { return ++calls < stop_at; };
    const Status outcome = load_in_parallel({.items = 3, .threads = 3, .on_progress = told}, endless);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code, ErrorCode::kStopped);
    EXPECT_EQ(calls, stop_at);
  }
}

TEST(ParallelLoad, EndsWithTheFirstError) {
  const Status outcome = load_in_parallel({.items = 3, .threads = 3}, [](ParallelLoad& load) -> Status {
    if (load.next() == 1) return error(ErrorCode::kBundleDamaged, "the second");
    return endless(load);
  });
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().message, "the second");
}

TEST(ParallelLoad, EndsWhereProgressThrows) {
  int calls = 0;
  const ParallelLoadOptions options{.items = 3, .threads = 3, .on_progress = [&](int64_t, int64_t) {
                                      if (++calls > 1) throw std::runtime_error("from outside");
                                      return true;
                                    }};
  EXPECT_THROW(static_cast<void>(load_in_parallel(options, endless)), std::runtime_error);
}

TEST(ParallelLoad, ReportsThatMemoryIsShort) {
  const Status outcome = load_in_parallel({.items = 1}, [](ParallelLoad&) -> Status { throw std::bad_alloc(); });
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kOutOfMemory);
}

TEST(ParallelLoad, OfNothingIsDoneAtOnce) {
  EXPECT_TRUE(load_in_parallel({}, [](ParallelLoad& load) -> Status {
    EXPECT_FALSE(load.next());
    return success();
  }));
}

}  // namespace
}  // namespace sala::test
