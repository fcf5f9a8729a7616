#include "memory/paged_memory.h"

#include <algorithm>
#include <utility>

namespace sala {

PagedMemory::State PagedMemory::state_of(const PageRef& page) {
  if (page == nullptr) return State::kAbsent;
  return page.use_count() > static_cast<long>(page->count()) ? State::kShared : State::kExclusive;
}

PagedMemory::Run PagedMemory::widened(const Pages& pages, Run run) {
  while (run.first > 0 && pages[run.first] != nullptr && pages[run.first - 1] == pages[run.first]) --run.first;
  while (run.last < pages.size() && pages[run.last] != nullptr && pages[run.last - 1] == pages[run.last]) ++run.last;
  return run;
}

PagedMemory::Run PagedMemory::narrowed(const Pages& pages, Run run) {
  const auto is_cut = [&](size_t at) {
    return at > 0 && at < pages.size() && pages[at] != nullptr && pages[at - 1] == pages[at];
  };
  while (run.first < run.last && is_cut(run.first)) ++run.first;
  while (run.first < run.last && is_cut(run.last)) --run.last;
  return run;
}

char* PagedMemory::address(void* buffer, size_t page) const {
  return static_cast<char*>(buffer) + static_cast<int64_t>(page) * source_->page_bytes();
}

template <class IsWanted, class Work>
Status PagedMemory::for_runs(const Pages& pages, Run all, IsWanted is_wanted, Work work) {
  while (all.first < all.last) {
    const State state = state_of(pages[all.first]);
    Run run{all.first, all.first + 1};
    while (run.last < all.last && state_of(pages[run.last]) == state) ++run.last;
    if (is_wanted(state)) SALA_RETURN_IF_ERROR(work(run));
    all.first = run.last;
  }
  return success();
}

Expected<Buffer> PagedMemory::allocate(int64_t bytes) {
  const int64_t page = source_->page_bytes();
  if (bytes < 0) return error(ErrorCode::kInvalidArgument, "cannot allocate ", bytes, " bytes");
  if (bytes > INT64_MAX - page) {
    return error(ErrorCode::kOutOfMemory, bytes, " bytes exceed the address space; choose a smaller max_context");
  }
  const int64_t rounded = (std::max<int64_t>(bytes, 1) + page - 1) / page * page;
  const std::lock_guard lock(mutex_);
  SALA_RETURN_IF_ERROR(source_->check_process());
  const auto addresses = source_->reserve(rounded);
  if (!addresses) return addresses.error();
  tables_[*addresses].resize(page_of(rounded));
  return Buffer(*this, *addresses, rounded);
}

Status PagedMemory::claim(Buffer& buffer, ByteRange part) {
  if (part.bytes == 0) return success();
  const std::lock_guard lock(mutex_);
  SALA_RETURN_IF_ERROR(source_->check_process());
  Pages& pages = tables_[buffer.data()];
  const Run run{page_of(part.offset), page_of(part.offset + part.bytes - 1) + 1};
  SALA_RETURN_IF_ERROR(for_runs(
      pages, widened(pages, run), [](State state) { return state != State::kExclusive; },
      [&](const Run& found) { return own(buffer.data(), pages, found); }));
  return merge_behind(buffer.data(), pages, run);
}

/// Puts new pages in the place of absent or shared ones.
Status PagedMemory::own(void* buffer, Pages& pages, Run run) {
  const auto created = source_->create(address(buffer, run.first), run.size());
  return created ? replace(buffer, pages, run, *created) : created.error();
}

/// Puts new pages in the place of absent ones, as zeros, or of others, as copies.
Status PagedMemory::replace(void* buffer, Pages& pages, Run run, std::span<const PageRef> by) {
  char* at = address(buffer, run.first);
  const std::span before(pages.data() + run.first, run.size());
  const bool was_absent = before.front() == nullptr;
  if (!was_absent) {
    SALA_RETURN_IF_ERROR(source_->copy(by, at));
    SALA_RETURN_IF_ERROR(source_->unmap(at, run.size()));
  }
  Status made = source_->map(at, by);
  if (made && was_absent) {
    made = source_->zero(at, run.size());
    if (!made) SALA_RETURN_IF_ERROR(source_->unmap(at, run.size()));
  }
  if (made) {
    std::copy(by.begin(), by.end(), before.begin());
    return success();
  }
  if (was_absent || source_->map(at, before)) return made;
  std::fill(before.begin(), before.end(), nullptr);
  return error(ErrorCode::kEngineFailed, "a part of a cache was lost: ", made.error().message);
}

/// Merges the group in front of each one that a claim was in, if it is complete and only this buffer has it.
Status PagedMemory::merge_behind(void* buffer, Pages& pages, Run claimed) {
  const size_t count = source_->merged_pages();
  if (count == 1) return success();
  for (size_t end = claimed.first / count * count; end < claimed.last; end += count) {
    if (end == 0 || pages[end] == nullptr) continue;
    const Run group{end - count, end};
    const bool is_ready = std::all_of(
        pages.begin() + static_cast<ptrdiff_t>(group.first), pages.begin() + static_cast<ptrdiff_t>(group.last),
        [](const PageRef& page) { return state_of(page) == State::kExclusive && page->count() == 1; });
    if (!is_ready) continue;
    const auto merged = source_->create_merged();
    // Where there is no room for both, the group stays as it is.
    if (!merged && merged.error().code == ErrorCode::kOutOfMemory) return success();
    if (!merged) return merged.error();
    const Status replaced = replace(buffer, pages, group, Pages(count, *merged));
    if (!replaced && replaced.error().code != ErrorCode::kOutOfMemory) return replaced;
  }
  return success();
}

Status PagedMemory::drop(Buffer& buffer, ByteRange part) {
  const std::lock_guard lock(mutex_);
  const int64_t page = source_->page_bytes();
  Pages& pages = tables_[buffer.data()];
  return unmap(buffer.data(), pages,
               narrowed(pages, {page_of(part.offset + page - 1), page_of(part.offset + part.bytes)}));
}

Status PagedMemory::clear(Buffer& buffer) {
  const std::lock_guard lock(mutex_);
  Pages& pages = tables_[buffer.data()];
  return unmap(buffer.data(), pages, {0, pages.size()});
}

Status PagedMemory::unmap(void* buffer, Pages& pages, Run all) {
  return for_runs(
      pages, all, [](State state) { return state != State::kAbsent; },
      [&](const Run& run) -> Status {
        SALA_RETURN_IF_ERROR(source_->unmap(address(buffer, run.first), run.size()));
        std::fill_n(pages.begin() + static_cast<ptrdiff_t>(run.first), run.size(), nullptr);
        return success();
      });
}

Status PagedMemory::share(Buffer& to, const Buffer& from, std::span<const ByteRange>) {
  const std::lock_guard lock(mutex_);
  SALA_RETURN_IF_ERROR(source_->check_process());
  Pages& taken = tables_[to.data()];
  const Pages& pages = tables_[from.data()];
  return for_runs(
      pages, {0, pages.size()}, [](State state) { return state != State::kAbsent; },
      [&](const Run& run) -> Status {
        const std::span same(pages.data() + run.first, run.size());
        SALA_RETURN_IF_ERROR(source_->map(address(to.data(), run.first), same));
        std::copy(same.begin(), same.end(), taken.begin() + static_cast<ptrdiff_t>(run.first));
        return success();
      });
}

Status PagedMemory::read(void* host, const void* from, int64_t bytes) {
  SALA_RETURN_IF_ERROR(source_->check_process());
  return source_->read(host, from, bytes);
}

Status PagedMemory::write(void* to, const void* host, int64_t bytes) {
  SALA_RETURN_IF_ERROR(source_->check_process());
  return source_->write(to, host, bytes);
}

int64_t PagedMemory::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return source_->live_pages() * source_->page_bytes();
}

void PagedMemory::release(void* data, int64_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  const auto table = tables_.find(data);
  // A driver that cannot unmap has lost its context, and with it the pages.
  static_cast<void>(unmap(data, table->second, {0, table->second.size()}));
  tables_.erase(table);
  source_->free(static_cast<char*>(data), bytes);
}

}  // namespace sala
