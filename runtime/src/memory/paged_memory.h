// Buffers that grow page by page and share pages.
//
// A buffer is a range of addresses that never changes, for kernels and captured graphs know it. What is behind the
// addresses is a table of pages. A page that two tables hold is read by both and written by neither: whoever claims it
// gets a copy of its own first. So the keys and values of a prompt stand in memory once, however many sessions go on
// from it. The idea of growing caches by mapping is that of vAttention (Prabhu et al., 2024).
//
// To map a page of a GPU takes its driver 25 us, whatever its size, so a fork of a long context would take as long as
// it has pages. A group of pages is therefore merged when the next group has begun: what grows at its end keeps small
// pages there, of which little is copied. In a table, merged pages stand as often as they have pages.
//
// A table may be mapped at a second place, within another buffer: a step of a batch needs the caches of its sessions
// side by side, while each session keeps its own.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "memory/page_source.h"
#include "sala/engine.h"

namespace sala {

class PagedMemory final : public Memory {
 public:
  explicit PagedMemory(std::unique_ptr<PageSource> source) : source_(std::move(source)) {}
  /// All buffers must be gone.
  ~PagedMemory() override = default;

  Expected<Buffer> allocate(int64_t bytes) override;
  Status claim(Buffer& buffer, ByteRange part) override;
  int64_t unclaimed_bytes(const Buffer& buffer, ByteRange part) const override;
  Status drop(Buffer& buffer, ByteRange part) override;
  Status share(Buffer& to, const Buffer& from, std::span<const ByteRange> parts) override;
  Status clear(Buffer& buffer) override;
  Status read(void* host, const void* from, int64_t bytes) override;
  Status write(void* to, const void* host, int64_t bytes) override;
  Status copy(void* to, const void* from, int64_t bytes) override;
  Status show(Buffer& buffer, Buffer& at, int64_t offset) override;
  Status hide(Buffer& buffer) override;
  int64_t page_bytes() const override { return source_->page_bytes(); }
  bool is_on_host() const override { return source_->is_on_host(); }
  Expected<std::optional<int64_t>> free_bytes() const override { return source_->free_bytes(); }
  int64_t used_bytes() const override;

 private:
  using Pages = std::vector<PageRef>;
  /// Neighbours of a table that are alike, from page `first` up to page `last`.
  struct Run {
    size_t first;
    size_t last;
    size_t size() const { return last - first; }
  };
  struct Table {
    char* at = nullptr;     // the beginning of the buffer
    char* shown = nullptr;  // its second place, where the same pages are mapped; null if there is none
    Pages pages;            // null where nothing is mapped

    Run all() const { return {0, pages.size()}; }
  };
  enum class State { kAbsent, kShared, kExclusive };

  static State state_of(const PageRef& page);
  static bool is_present(State state) { return state != State::kAbsent; }
  /// The run that has no merged pages in part: widened to have them, or narrowed not to.
  static Run widened(const Pages& pages, Run run);
  static Run narrowed(const Pages& pages, Run run);
  size_t page_of(int64_t offset) const { return static_cast<size_t>(offset / source_->page_bytes()); }
  char* address(char* at, size_t page) const { return at + static_cast<int64_t>(page) * source_->page_bytes(); }
  Run pages_of(ByteRange part) const { return {page_of(part.offset), page_of(part.offset + part.bytes - 1) + 1}; }
  Table& table_of(const Buffer& buffer) { return tables_[buffer.data()]; }
  /// Calls `work` with every run of pages among `all` that `is_wanted` takes.
  template <class IsWanted, class Work>
  static Status for_runs(const Pages& pages, Run all, IsWanted is_wanted, Work work);
  Status own(Table& table, Run run);
  Status replace(Table& table, Run run, std::span<const PageRef> by);
  Status merge_behind(Table& table, Run claimed);
  Status map(Table& table, size_t first, std::span<const PageRef> pages);
  Status unmap(Table& table, Run run);
  Status unmap_present(Table& table, Run among);
  Status hide(Table& table, size_t end);
  void release(void* data, int64_t bytes) noexcept override;

  mutable std::mutex mutex_;
  std::unique_ptr<PageSource> source_;
  std::map<void*, Table> tables_;  // by the address of the buffer
};

}  // namespace sala
