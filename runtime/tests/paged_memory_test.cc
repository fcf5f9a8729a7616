// Memory that grows and shares pages, on the host and on the fake driver: at random against plain copies, with calls
// that fail, and nothing left at the end.

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "tensorrt_support.h"

namespace sala::test {
namespace {

/// A buffer, what it must hold, and which pages may be read.
struct Known {
  Buffer buffer;
  std::vector<char> bytes;
  std::vector<bool> claimed;  // by page
  std::vector<bool> dropped;  // by page: it may still be there, with anything
};

class Trial {
 public:
  Trial(Memory& memory, unsigned seed) : memory_(memory), random_(seed), page_(memory.page_bytes()) {}

  void run(int operations, const std::function<void()>& before = [] {}) {
    for (int i = 0; i < operations && !testing::Test::HasFailure(); ++i) {
      before();
      step();
    }
    check_all();
  }

  int failures = 0;

 private:
  static constexpr int64_t kPages = 20;

  int64_t pick(int64_t count) { return std::uniform_int_distribution<int64_t>(0, count - 1)(random_); }

  ByteRange part() {
    const int64_t offset = pick(kPages * page_);
    return {offset, pick(std::min((pick(4) == 0 ? 12 : 3) * page_, kPages * page_ - offset) + 1)};
  }

  void step() {
    if (known_.empty() || pick(20) == 0) return allocate();
    Known& each = known_[static_cast<size_t>(pick(static_cast<int64_t>(known_.size())))];
    switch (pick(6)) {
      case 0:
      case 1:
        return write(each);
      case 2:
        return share(each);
      case 3:
        return drop(each);
      case 4:
        return check(each);
      default:
        if (pick(3) > 0) return;
        std::swap(each, known_.back());
        known_.pop_back();
    }
  }

  void allocate() {
    if (known_.size() > 12) return;
    auto buffer = memory_.allocate(kPages * page_ - pick(page_));
    if (!buffer) return failed(buffer.error());
    known_.push_back({*std::move(buffer), std::vector<char>(static_cast<size_t>(kPages * page_)),
                      std::vector<bool>(static_cast<size_t>(kPages)), std::vector<bool>(static_cast<size_t>(kPages))});
  }

  void write(Known& to) {
    const ByteRange part = Trial::part();
    if (part.bytes == 0) return;
    if (const Status claimed = memory_.claim(to.buffer, part); !claimed) return failed(claimed.error());
    for (int64_t page = part.offset / page_; page * page_ < part.offset + part.bytes; ++page) {
      if (to.claimed[static_cast<size_t>(page)]) continue;
      to.claimed[static_cast<size_t>(page)] = true;
      std::fill_n(to.bytes.begin() + page * page_, page_, 0);
      if (!to.dropped[static_cast<size_t>(page)]) continue;
      ASSERT_TRUE(memory_.write(static_cast<char*>(to.buffer.data()) + page * page_, &to.bytes[page * page_], page_));
    }
    std::vector<char> fresh(static_cast<size_t>(part.bytes));
    for (char& each : fresh) each = static_cast<char>(random_());
    ASSERT_TRUE(memory_.write(static_cast<char*>(to.buffer.data()) + part.offset, fresh.data(), part.bytes));
    std::copy(fresh.begin(), fresh.end(), to.bytes.begin() + part.offset);
  }

  void share(Known& from) {
    if (known_.size() > 12) return;
    auto buffer = memory_.allocate(kPages * page_);
    if (!buffer) return failed(buffer.error());
    if (const Status shared = memory_.share(*buffer, from.buffer, {}); !shared) return failed(shared.error());
    Known made{*std::move(buffer), from.bytes, from.claimed, from.dropped};
    known_.push_back(std::move(made));
  }

  void drop(Known& from) {
    const ByteRange part = pick(4) == 0 ? ByteRange{0, kPages * page_} : Trial::part();
    ASSERT_TRUE(memory_.drop(from.buffer, part));
    for (int64_t page = (part.offset + page_ - 1) / page_; (page + 1) * page_ <= part.offset + part.bytes; ++page) {
      from.claimed[static_cast<size_t>(page)] = false;
      from.dropped[static_cast<size_t>(page)] = true;
    }
  }

  void check(const Known& each) {
    std::vector<char> page(static_cast<size_t>(page_));
    for (int64_t i = 0; i < kPages; ++i) {
      if (!each.claimed[static_cast<size_t>(i)]) continue;
      ASSERT_TRUE(memory_.read(page.data(), static_cast<const char*>(each.buffer.data()) + i * page_, page_));
      ASSERT_EQ(std::memcmp(page.data(), each.bytes.data() + i * page_, page.size()), 0);
    }
  }

  void check_all() {
    for (const Known& each : known_) check(each);
  }

  void failed(const Error& error) {
    ++failures;
    EXPECT_EQ(name_of(error.code), name_of(ErrorCode::kOutOfMemory)) << error.message;
  }

  Memory& memory_;
  std::mt19937 random_;
  int64_t page_;
  std::vector<Known> known_;
};

TEST(PagedHostMemory, HoldsWhatCopiesWouldHold) {
  const auto memory = paged_host_memory();
  EXPECT_TRUE(memory->is_on_host());
  for (unsigned seed = 0; seed < 3; ++seed) Trial(*memory, seed).run(1500);
  EXPECT_EQ(memory->used_bytes(), 0);
}

TEST(PagedHostMemory, HasNoRoomForMoreThanTheAddressSpace) {
  const auto memory = paged_host_memory();
  EXPECT_EQ(memory->allocate(INT64_MAX / 2).error().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(memory->allocate(INT64_MAX).error().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(memory->allocate(-1).error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(memory->allocate(0));
}

using PagedCudaMemory = TensorRt;

TEST_F(PagedCudaMemory, HoldsWhatCopiesWouldHoldAndAccountsForEveryPage) {
  cuda().page_bytes = 4096;
  const auto memory = cuda_memory(0);
  ASSERT_TRUE(memory) << memory.error().message;
  Trial(**memory, 1).run(3000);
  EXPECT_GT(cuda().merged_pages, 20);
  EXPECT_EQ((*memory)->used_bytes(), 0);
  EXPECT_TRUE(cuda().pages.empty());
  EXPECT_TRUE(cuda().mapped.empty());
}

TEST_F(PagedCudaMemory, SurvivesEveryCallThatFails) {
  cuda().page_bytes = 4096;
  const auto memory = cuda_memory(0);
  ASSERT_TRUE(memory) << memory.error().message;
  std::mt19937 random(7);
  int failures = 0;
  {
    Trial trial(**memory, 2);
    trial.run(7000,
              [&] { cuda().page_calls_before_failure = random() % 4 == 0 ? static_cast<int>(random() % 6) : -1; });
    cuda().page_calls_before_failure = -1;
    failures = trial.failures;
  }
  EXPECT_GT(failures, 200);
  EXPECT_GT(cuda().merged_pages, 20);
  EXPECT_TRUE(cuda().pages.empty());
  EXPECT_TRUE(cuda().mapped.empty());
}

/// A claim of the pages from `first` up to `last`.
ByteRange pages(const Memory& memory, int64_t first, int64_t last) {
  return {first * memory.page_bytes(), (last - first) * memory.page_bytes()};
}

TEST_F(PagedCudaMemory, MergesWhatLiesBehindSoThatForksMapLittle) {
  cuda().page_bytes = 4096;
  const auto memory = cuda_memory(0);
  auto book = (*memory)->allocate(64 * 4096);
  for (int64_t page = 0; page < 40; ++page) ASSERT_TRUE((*memory)->claim(*book, pages(**memory, page, page + 1)));
  EXPECT_EQ(cuda().mapped.size(), 4 + 8) << "the last group has not been followed by another";
  EXPECT_EQ((*memory)->used_bytes(), 40 * 4096);
  auto fork = (*memory)->allocate(64 * 4096);
  ASSERT_TRUE((*memory)->share(*fork, *book, {}));
  EXPECT_EQ(cuda().mapped.size(), 2 * (4 + 8));
  EXPECT_EQ((*memory)->used_bytes(), 40 * 4096);
  ASSERT_TRUE((*memory)->claim(*fork, pages(**memory, 39, 42)));
  EXPECT_EQ((*memory)->used_bytes(), (40 + 3) * 4096) << "a copy of the last page, and two more";
  // From the middle of merged pages on, those are copied.
  ASSERT_TRUE((*memory)->drop(*fork, pages(**memory, 20, 64)));
  ASSERT_TRUE((*memory)->claim(*fork, pages(**memory, 20, 21)));
  EXPECT_EQ((*memory)->used_bytes(), (40 + 8) * 4096);
}

TEST_F(PagedCudaMemory, LeavesPagesAsTheyAreWhereNothingIsFreeToMergeThem) {
  cuda().page_bytes = 4096;
  cuda().total_bytes = 12 * 4096;
  const auto memory = cuda_memory(0);
  auto buffer = (*memory)->allocate(64 * 4096);
  ASSERT_TRUE((*memory)->claim(*buffer, pages(**memory, 0, 12)));
  EXPECT_EQ(cuda().mapped.size(), 12);
  EXPECT_EQ(cuda().merged_pages, 0);
}

TEST_F(PagedCudaMemory, SaysHowMuchIsFree) {
  cuda().page_bytes = 65536;
  cuda().total_bytes = 10 * 65536;
  const auto memory = cuda_memory(0);
  auto buffer = (*memory)->allocate(int64_t{1} << 30);
  ASSERT_TRUE(buffer) << buffer.error().message;
  EXPECT_EQ(**(*memory)->free_bytes(), 10 * 65536);
  ASSERT_TRUE((*memory)->claim(*buffer, {65536, 1}));
  EXPECT_EQ(**(*memory)->free_bytes(), 9 * 65536);
  EXPECT_EQ((*memory)->used_bytes(), 65536);
  const Status refused = (*memory)->claim(*buffer, {0, 11 * 65536});
  expect_error(refused.error(), ErrorCode::kOutOfMemory,
               {"no room for 589824 bytes", "are free", "end other sessions"});
}

TEST_F(PagedCudaMemory, IsInOnePieceOnAGpuThatCannotMapPages) {
  expect_error(cuda_memory(3).error(), ErrorCode::kDeviceMissing, {"no GPU 3", "has 1"});
  cuda().maps_pages = false;
  const auto memory = cuda_memory(0);
  ASSERT_TRUE(memory) << memory.error().message;
  const auto buffer = (*memory)->allocate(100'000);
  ASSERT_TRUE(buffer);
  EXPECT_EQ((*memory)->used_bytes(), 100'000);
  EXPECT_EQ(cuda().used_bytes(), 100'000);
  EXPECT_TRUE(cuda().pages.empty());
}

}  // namespace
}  // namespace sala::test
