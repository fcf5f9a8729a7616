// Memory that grows and shares pages and shows buffers at a second place, on the host and on the fake driver: at random
// against plain copies, with calls that fail, and nothing left at the end.

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "cuda/device_memory.h"
#include "tensorrt_support.h"

namespace sala::test {
namespace {

/// A buffer, what it must hold, which pages may be read, and where it is shown.
struct Known {
  Buffer buffer;
  std::vector<char> bytes;
  std::vector<bool> claimed;  // by page
  std::vector<bool> dropped;  // by page: it may still be there, with anything
  std::optional<int64_t> slot = std::nullopt;
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
  int failures_to_show = 0;
  int shows = 0;

 private:
  static constexpr int64_t kPages = 20;
  static constexpr int64_t kSlots = 4;
  static constexpr int64_t kSlotPages = kPages + 1;  // so that merged pages come to stand anywhere

  int64_t pick(int64_t count) { return std::uniform_int_distribution<int64_t>(0, count - 1)(random_); }

  ByteRange part() {
    const int64_t offset = pick(kPages * page_);
    return {offset, pick(std::min((pick(4) == 0 ? 12 : 3) * page_, kPages * page_ - offset) + 1)};
  }

  void step() {
    if (known_.empty() || pick(20) == 0) return allocate();
    Known& each = known_[static_cast<size_t>(pick(static_cast<int64_t>(known_.size())))];
    switch (pick(8)) {
      case 0:
      case 1:
        return write(each);
      case 2:
        return share(each);
      case 3:
        return drop(each);
      case 4:
        return check(each);
      case 5:
      case 6:
        return each.slot ? hide(each) : show(each);
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
      ASSERT_TRUE(memory_.write(place(to) + page * page_, &to.bytes[page * page_], page_));
    }
    std::vector<char> fresh(static_cast<size_t>(part.bytes));
    for (char& each : fresh) each = static_cast<char>(random_());
    ASSERT_TRUE(memory_.write(place(to) + part.offset, fresh.data(), part.bytes));
    std::copy(fresh.begin(), fresh.end(), to.bytes.begin() + part.offset);
  }

  void share(Known& from) {
    if (known_.size() > 12) return;
    auto buffer = memory_.allocate(kPages * page_);
    if (!buffer) return failed(buffer.error());
    Known made{*std::move(buffer), std::vector<char>(from.bytes.size()), std::vector<bool>(from.claimed.size()),
               std::vector<bool>(from.claimed.size())};
    if (pick(2) == 0) show(made);
    if (const Status shared = memory_.share(made.buffer, from.buffer, {})) {
      made.bytes = from.bytes;
      made.claimed = from.claimed;
      made.dropped = from.dropped;
    } else {
      failed(shared.error());
    }
    known_.push_back(std::move(made));
  }

  void show(Known& each) {
    if (range_.data() == nullptr) {
      auto range = memory_.allocate(kSlots * kSlotPages * page_);
      if (!range) return failed(range.error());
      range_ = *std::move(range);
    }
    std::vector<bool> taken(static_cast<size_t>(kSlots));
    for (const Known& other : known_) {
      if (other.slot) taken[static_cast<size_t>(*other.slot)] = true;
    }
    const int64_t slot = pick(kSlots);
    if (taken[static_cast<size_t>(slot)]) return;
    if (const Status shown = memory_.show(each.buffer, range_, slot * kSlotPages * page_); !shown) {
      ++failures_to_show;
      return failed(shown.error());
    }
    ++shows;
    each.slot = slot;
    check(each);
  }

  void hide(Known& each) {
    ASSERT_TRUE(memory_.hide(each.buffer));
    each.slot.reset();
    check(each);
  }

  char* second_place(const Known& each) const {
    return static_cast<char*>(range_.data()) + *each.slot * kSlotPages * page_;
  }
  /// Either of its places.
  char* place(const Known& each) {
    return each.slot && pick(2) == 0 ? second_place(each) : static_cast<char*>(each.buffer.data());
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
    check_at(each, static_cast<const char*>(each.buffer.data()));
    if (each.slot) check_at(each, second_place(each));
  }

  void check_at(const Known& each, const char* at) {
    std::vector<char> page(static_cast<size_t>(page_));
    for (int64_t i = 0; i < kPages; ++i) {
      if (!each.claimed[static_cast<size_t>(i)]) continue;
      ASSERT_TRUE(memory_.read(page.data(), at + i * page_, page_));
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
  Buffer range_;  // where they are shown
  std::vector<Known> known_;
};

TEST(PagedHostMemory, HoldsWhatCopiesWouldHold) {
  const auto memory = paged_host_memory();
  EXPECT_TRUE(memory->is_on_host());
  for (unsigned seed = 0; seed < 3; ++seed) {
    Trial trial(*memory, seed);
    trial.run(1500);
    EXPECT_GT(trial.shows, 50);
  }
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
  {
    Trial trial(**memory, 1);
    trial.run(3000);
    EXPECT_GT(trial.shows, 100);
  }
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
  int failures_to_show = 0;
  {
    Trial trial(**memory, 2);
    trial.run(7000,
              [&] { cuda().page_calls_before_failure = random() % 4 == 0 ? static_cast<int>(random() % 6) : -1; });
    cuda().page_calls_before_failure = -1;
    failures = trial.failures;
    failures_to_show = trial.failures_to_show;
  }
  EXPECT_GT(failures, 200);
  EXPECT_GT(failures_to_show, 20);
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

TEST_F(PagedCudaMemory, ShowsABufferAtASecondPlace) {
  cuda().page_bytes = 4096;
  const auto memory = cuda_memory(0);
  auto range = (*memory)->allocate(100 * 4096);
  auto buffer = (*memory)->allocate(32 * 4096);
  ASSERT_TRUE((*memory)->claim(*buffer, pages(**memory, 0, 10)));
  ASSERT_EQ(cuda().mapped.size(), 1 + 2);
  ASSERT_TRUE((*memory)->show(*buffer, *range, 3 * 4096));
  EXPECT_EQ(cuda().mapped.size(), 2 * (1 + 2)) << "merged pages are so at both places";
  ASSERT_TRUE((*memory)->claim(*buffer, pages(**memory, 20, 22)));
  EXPECT_EQ(cuda().mapped.size(), 2 * (1 + 4));
  EXPECT_EQ((*memory)->used_bytes(), 12 * 4096) << "both places are the same memory";
  char* shown = static_cast<char*>(range->data()) + 3 * 4096;
  int32_t value = 7;
  ASSERT_TRUE((*memory)->write(shown + 21 * 4096, &value, sizeof value));
  value = 0;
  ASSERT_TRUE((*memory)->read(&value, static_cast<char*>(buffer->data()) + 21 * 4096, sizeof value));
  EXPECT_EQ(value, 7);
  ASSERT_TRUE((*memory)->drop(*buffer, pages(**memory, 20, 21)));
  EXPECT_EQ(cuda().mapped.size(), 2 * (1 + 3));
  ASSERT_TRUE((*memory)->hide(*buffer));
  EXPECT_EQ(cuda().mapped.size(), 1 + 3);
  ASSERT_TRUE((*memory)->hide(*buffer)) << "nothing is shown";
  ASSERT_TRUE((*memory)->show(*buffer, *range, 68 * 4096)) << "at the end of the range";
  ASSERT_TRUE((*memory)->clear(*buffer));
  EXPECT_TRUE(cuda().mapped.empty());
  ASSERT_TRUE((*memory)->claim(*buffer, pages(**memory, 0, 1)));
  EXPECT_EQ(cuda().mapped.size(), 2);
  buffer = Buffer();
  EXPECT_TRUE(cuda().mapped.empty()) << "a buffer that ends is hidden";
  EXPECT_EQ((*memory)->used_bytes(), 0);
}

TEST_F(PagedCudaMemory, IsAsBeforeWhereverACallToShowOrToShareFails) {
  cuda().page_bytes = 4096;
  const auto memory = cuda_memory(0);
  auto range = (*memory)->allocate(100 * 4096);
  auto buffer = (*memory)->allocate(32 * 4096);
  auto fork = (*memory)->allocate(32 * 4096);
  for (const int64_t first : {0, 5, 20}) ASSERT_TRUE((*memory)->claim(*buffer, pages(**memory, first, first + 2)));
  /// Lets each of the calls fail in turn that map 6 pages and open 3 runs of them, at so many places.
  const auto fail_each = [&](int places, const std::function<Status()>& work) {
    const size_t before = cuda().mapped.size();
    for (int calls = 0; calls < 9 * places; ++calls) {
      cuda().page_calls_before_failure = calls;
      const Status done = work();
      ASSERT_FALSE(done) << calls;
      expect_error(done.error(), ErrorCode::kOutOfMemory, {});
      ASSERT_EQ(cuda().mapped.size(), before) << calls;
    }
    ASSERT_TRUE(work());
    EXPECT_EQ(cuda().mapped.size(), before + 6 * static_cast<size_t>(places));
  };
  fail_each(1, [&] { return (*memory)->show(*buffer, *range, 4096); });
  ASSERT_TRUE((*memory)->show(*fork, *range, 40 * 4096));
  fail_each(2, [&] { return (*memory)->share(*fork, *buffer, {}); });
}

TEST(PagedHostMemory, RefusesToShowWhatItCannot) {
  const auto memory = paged_host_memory();
  const int64_t page = memory->page_bytes();
  auto range = memory->allocate(8 * page);
  auto buffer = memory->allocate(4 * page);
  for (const int64_t offset : {int64_t{1}, page / 2, 5 * page, -page, INT64_MAX / page * page}) {
    const Status refused = memory->show(*buffer, *range, offset);
    ASSERT_FALSE(refused) << offset;
    EXPECT_EQ(name_of(refused.error().code), name_of(ErrorCode::kInvalidArgument)) << offset;
  }
  ASSERT_TRUE(memory->show(*buffer, *range, 4 * page));
  const Status twice = memory->show(*buffer, *range, 0);
  ASSERT_FALSE(twice);
  EXPECT_EQ(name_of(twice.error().code), name_of(ErrorCode::kInvalidArgument));
  EXPECT_NE(twice.error().message.find("already: hide it first"), std::string::npos) << twice.error().message;
  ASSERT_TRUE(memory->hide(*buffer));
  ASSERT_TRUE(memory->show(*buffer, *range, 0));
}

TEST(PagedHostMemory, AloneShowsBuffers) {
  auto range = host_memory().allocate(100);
  auto buffer = host_memory().allocate(10);
  const Status refused = host_memory().show(*buffer, *range, 0);
  ASSERT_FALSE(refused);
  EXPECT_EQ(name_of(refused.error().code), name_of(ErrorCode::kInvalidArgument));
  EXPECT_NE(refused.error().message.find("does not grow by pages"), std::string::npos) << refused.error().message;
  EXPECT_TRUE(host_memory().hide(*buffer));
}

/// Copies more than what goes through host memory at once, from and to any address.
void expect_copies(Memory& memory) {
  constexpr int64_t kBytes = (int64_t{9} << 20) + 5;
  auto from = memory.allocate(kBytes);
  auto to = memory.allocate(kBytes + 3);
  ASSERT_TRUE(from && to);
  ASSERT_TRUE(memory.claim(*from, {0, kBytes}));
  ASSERT_TRUE(memory.claim(*to, {0, kBytes + 3}));
  std::vector<char> bytes(static_cast<size_t>(kBytes));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * i / 7);
  ASSERT_TRUE(memory.write(from->data(), bytes.data(), kBytes));
  ASSERT_TRUE(memory.copy(static_cast<char*>(to->data()) + 2, static_cast<char*>(from->data()) + 1, kBytes - 1));
  ASSERT_TRUE(memory.copy(to->data(), from->data(), 0));
  std::vector<char> read(static_cast<size_t>(kBytes + 3));
  ASSERT_TRUE(memory.read(read.data(), to->data(), kBytes + 3));
  EXPECT_EQ(std::memcmp(read.data() + 2, bytes.data() + 1, static_cast<size_t>(kBytes - 1)), 0);
  for (const int64_t untouched : {int64_t{0}, int64_t{1}, kBytes + 1, kBytes + 2}) EXPECT_EQ(read[untouched], 0);
}

TEST(PagedHostMemory, CopiesAsOtherMemoryOfTheHostDoes) {
  expect_copies(*paged_host_memory());
  expect_copies(host_memory());
  MockMemory mock;  // which has no copy of its own
  expect_copies(mock);
}

TEST_F(PagedCudaMemory, CopiesAsOtherMemoryOfTheGpuDoes) {
  expect_copies(**cuda_memory(0));
  cuda().maps_pages = false;
  expect_copies(**cuda_memory(0));
  const auto driver = cuda::CudaDriver::load();
  ASSERT_TRUE(driver);
  auto device = cuda::Device::open(*driver, cuda::find_devices(*driver)->front());
  ASSERT_TRUE(device);
  cuda::PinnedMemory pinned(*std::move(device));
  expect_copies(pinned);
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
