// Pages of the host.

#pragma once

#include <sys/types.h>

#include <map>
#include <memory>

#include "memory/page_source.h"

namespace sala {

/// Shared anonymous memory of the system. A page is a part of an extent, which is as large as the buffer that it was
/// made for and mapped as a whole: `mremap` with an old size of 0 gives a part of it a second address. So neighbours of
/// a buffer are neighbours of an extent, and the system keeps one mapping for all of them, not one for each page.
///
/// The system gives memory when it is written, in its own smaller pages, and takes it back when a page goes.
class HostPages final : public PageSource {
 public:
  HostPages();
  ~HostPages() override;

  Status check_process() const override;
  int64_t page_bytes() const override { return page_bytes_; }
  bool is_on_host() const override { return true; }
  Expected<std::optional<int64_t>> free_bytes() const override { return std::optional<int64_t>(); }
  Expected<char*> reserve(int64_t bytes) override;
  void free(char* addresses, int64_t bytes) noexcept override;
  Expected<std::vector<PageRef>> create(const char* at, size_t count) override;
  Status copy(std::span<const PageRef> to, const char* from) override;
  Status map(char* at, std::span<const PageRef> pages) override;
  Status unmap(char* at, size_t count) override;
  Status zero(char* at, size_t count) override;
  Status read(void* host, const void* from, int64_t bytes) override;
  Status write(void* to, const void* host, int64_t bytes) override;
  Status copy(void* to, const void* from, int64_t bytes) override;

 private:
  class Extent;
  class ExtentPage;
  struct Reservation {
    int64_t bytes;
    std::shared_ptr<Extent> extent;  // of the next pages; null before the first
  };

  static char* address(const PageRef& page);

  int64_t page_bytes_;
  pid_t process_;
  std::map<const char*, Reservation> reservations_;  // by their first address
};

}  // namespace sala
