#include "memory/host_pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "memory/paged_memory.h"

namespace sala {

namespace {

// Small enough that a fork copies little, and large enough that a table has few entries.
constexpr int64_t kPageBytes = int64_t{64} << 10;

constexpr const char* kReserving = "choose a smaller max_context";
constexpr const char* kGrowing = "end other sessions, or raise vm.max_map_count if memory is free";

Error no_room(int64_t bytes, int reason, const char* advice) {
  return error(ErrorCode::kOutOfMemory, "no room for ", bytes, " bytes of host memory: ", std::strerror(reason), "; ",
               advice);
}

}  // namespace

/// The memory behind pages, mapped as a whole so that they have an address while no buffer maps them.
class HostPages::Extent {
 public:
  static Expected<std::shared_ptr<Extent>> create(int64_t bytes, int64_t page_bytes) {
    void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return no_room(bytes, errno, kGrowing);
    // A child would share the memory itself, not a copy of it.
    madvise(data, static_cast<size_t>(bytes), MADV_DONTFORK);
    return std::shared_ptr<Extent>(new Extent(static_cast<char*>(data), bytes, page_bytes));
  }

  Extent(const Extent&) = delete;
  Extent& operator=(const Extent&) = delete;
  ~Extent() {
    if (is_mapped()) munmap(data_, static_cast<size_t>(bytes_));
  }

  /// False in a child of `fork`, where something else may have taken the addresses.
  bool is_mapped() const { return getpid() == process_; }

  char* address(size_t index) const { return data_ + static_cast<int64_t>(index) * page_bytes_; }
  bool is_free(size_t first, size_t count) const {
    const auto begin = taken_.begin() + static_cast<ptrdiff_t>(first);
    return std::none_of(begin, begin + static_cast<ptrdiff_t>(count), [](bool taken) { return taken; });
  }
  void take(size_t index) { taken_[index] = true; }
  void give_back(size_t index) {
    // What comes next there is zeros. It cannot fail on memory that is ours.
    if (is_mapped()) madvise(address(index), static_cast<size_t>(page_bytes_), MADV_REMOVE);
    taken_[index] = false;
  }

 private:
  Extent(char* data, int64_t bytes, int64_t page_bytes)
      : data_(data), bytes_(bytes), page_bytes_(page_bytes), taken_(static_cast<size_t>(bytes / page_bytes)) {}

  char* data_;
  int64_t bytes_;
  int64_t page_bytes_;
  pid_t process_ = getpid();
  std::vector<bool> taken_;
};

class HostPages::ExtentPage final : public Page {
 public:
  ExtentPage(int64_t& live, std::shared_ptr<Extent> extent, size_t index)
      : Page(live, 1), extent_(std::move(extent)), index_(index) {
    extent_->take(index_);
  }
  ~ExtentPage() override { extent_->give_back(index_); }

  char* address() const { return extent_->address(index_); }

 private:
  std::shared_ptr<Extent> extent_;
  size_t index_;
};

HostPages::HostPages() : page_bytes_(std::max<int64_t>(kPageBytes, sysconf(_SC_PAGESIZE))), process_(getpid()) {}

HostPages::~HostPages() = default;

char* HostPages::address(const PageRef& page) { return static_cast<const ExtentPage&>(*page).address(); }

Status HostPages::check_process() const {
  if (getpid() == process_) return success();
  return error(ErrorCode::kEngineFailed, "this model was loaded by process ", process_, ", of which this one, ",
               getpid(), ", is a fork: load the model after the fork");
}

Expected<char*> HostPages::reserve(int64_t bytes) {
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return no_room(bytes, errno, kReserving);
  reservations_[static_cast<char*>(data)] = {bytes, nullptr};
  return static_cast<char*>(data);
}

void HostPages::free(char* addresses, int64_t bytes) noexcept {
  reservations_.erase(addresses);
  munmap(addresses, static_cast<size_t>(bytes));
}

Expected<std::vector<PageRef>> HostPages::create(const char* at, size_t count) {
  const auto found = std::prev(reservations_.upper_bound(at));
  Reservation& reservation = found->second;
  const size_t first = static_cast<size_t>((at - found->first) / page_bytes_);
  if (reservation.extent == nullptr || !reservation.extent->is_free(first, count)) {
    auto extent = Extent::create(reservation.bytes, page_bytes_);
    if (!extent) return extent.error();
    reservation.extent = *std::move(extent);
  }
  std::vector<PageRef> pages;
  for (size_t i = 0; i < count; ++i) {
    pages.push_back(make_page<ExtentPage>(reservation.extent, first + i));
  }
  return pages;
}

Status HostPages::copy(std::span<const PageRef> to, const char* from) {
  for (size_t i = 0; i < to.size(); ++i) {
    std::memcpy(address(to[i]), from + static_cast<int64_t>(i) * page_bytes_, static_cast<size_t>(page_bytes_));
  }
  return success();
}

Status HostPages::map(char* at, std::span<const PageRef> pages) {
  for (size_t first = 0; first < pages.size();) {
    size_t last = first + 1;
    while (last < pages.size() && address(pages[last]) == address(pages[last - 1]) + page_bytes_) ++last;
    const size_t bytes = (last - first) * static_cast<size_t>(page_bytes_);
    char* to = at + static_cast<int64_t>(first) * page_bytes_;
    if (mremap(address(pages[first]), 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) {
      const int reason = errno;
      SALA_RETURN_IF_ERROR(unmap(at, pages.size()));
      return no_room(static_cast<int64_t>(bytes), reason, kGrowing);
    }
    first = last;
  }
  return success();
}

Status HostPages::unmap(char* at, size_t count) {
  SALA_RETURN_IF_ERROR(check_process());
  const size_t bytes = count * static_cast<size_t>(page_bytes_);
  if (mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED) {
    return success();
  }
  return error(ErrorCode::kEngineFailed, "cannot give host memory back: ", std::strerror(errno));
}

// Pages of the system are zeros until they are written.
Status HostPages::zero(char*, size_t) { return success(); }

Status HostPages::read(void* host, const void* from, int64_t bytes) {
  std::memcpy(host, from, static_cast<size_t>(bytes));
  return success();
}

Status HostPages::write(void* to, const void* host, int64_t bytes) {
  std::memcpy(to, host, static_cast<size_t>(bytes));
  return success();
}

Status HostPages::copy(void* to, const void* from, int64_t bytes) { return read(to, from, bytes); }

std::unique_ptr<Memory> paged_host_memory() { return std::make_unique<PagedMemory>(std::make_unique<HostPages>()); }

}  // namespace sala
