// Where pages come from, and how they get an address: the system's memory, or a GPU's.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sala/status.h"

namespace sala {

/// Physical memory that is mapped as a whole: a page, or several that were merged. It goes back to its source with the
/// last reference.
class Page {
 public:
  /// `live` counts the pages of a source, and outlives them.
  Page(int64_t& live, size_t count) : live_(live), count_(count) { live_ += static_cast<int64_t>(count_); }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;
  virtual ~Page() { live_ -= static_cast<int64_t>(count_); }

  /// How many pages it is.
  size_t count() const { return count_; }

 private:
  int64_t& live_;
  size_t count_;
};

using PageRef = std::shared_ptr<const Page>;

/// Addresses and sizes are multiples of `page_bytes`. One thread at a time may use it and its pages.
class PageSource {
 public:
  PageSource() = default;
  PageSource(const PageSource&) = delete;
  PageSource& operator=(const PageSource&) = delete;
  virtual ~PageSource() = default;

  /// Whether this process may use what it made. kEngineFailed in a child of `fork` where the parent's memory is not.
  virtual Status check_process() const { return success(); }

  virtual int64_t page_bytes() const = 0;
  virtual bool is_on_host() const = 0;
  virtual Expected<std::optional<int64_t>> free_bytes() const = 0;
  /// Pages that somebody holds.
  int64_t live_pages() const { return live_pages_; }

  /// Reserves addresses, with nothing behind them.
  virtual Expected<char*> reserve(int64_t bytes) = 0;
  /// Frees the addresses of `reserve`, when nothing is mapped there any more.
  virtual void free(char* addresses, int64_t bytes) noexcept = 0;

  /// Creates pages to be mapped at `at`.
  virtual Expected<std::vector<PageRef>> create(const char* at, size_t count) = 0;
  /// How many pages are worth being merged, because every mapping takes time. 1 where nothing is gained.
  virtual size_t merged_pages() const { return 1; }
  /// Creates the memory of `merged_pages` pages as one. Only where that is more than 1.
  virtual Expected<PageRef> create_merged() { return PageRef(); }
  /// Copies what is mapped at `from` into new pages that are mapped nowhere.
  virtual Status copy(std::span<const PageRef> to, const char* from) = 0;
  /// Maps pages side by side, where nothing is mapped; they may be mapped elsewhere too. After an error nothing is.
  /// Merged ones stand there as often as they have pages, in `copy` too.
  virtual Status map(char* at, std::span<const PageRef> pages) = 0;
  virtual Status unmap(char* at, size_t count) = 0;

  /// Sets pages of `create` to zero that have just been mapped.
  virtual Status zero(char* at, size_t count) = 0;
  virtual Status read(void* host, const void* from, int64_t bytes) = 0;
  virtual Status write(void* to, const void* host, int64_t bytes) = 0;
  virtual Status copy(void* to, const void* from, int64_t bytes) = 0;

 protected:
  /// Makes the object of a page. A step needs a few of them that stay, between allocations that go: from the heap they
  /// would keep it from shrinking, so they come in blocks.
  template <class Made, class... Arguments>
  PageRef make_page(Arguments&&... arguments) {
    return std::allocate_shared<Made>(std::pmr::polymorphic_allocator<Made>(&objects_), live_pages_,
                                      std::forward<Arguments>(arguments)...);
  }

 private:
  std::pmr::unsynchronized_pool_resource objects_;
  int64_t live_pages_ = 0;
};

}  // namespace sala
