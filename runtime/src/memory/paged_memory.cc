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
  tables_[*addresses] = {*addresses, nullptr, Pages(page_of(rounded))};
  return Buffer(*this, *addresses, rounded);
}

Status PagedMemory::claim(Buffer& buffer, ByteRange part) {
  if (part.bytes == 0) return success();
  const std::lock_guard lock(mutex_);
  SALA_RETURN_IF_ERROR(source_->check_process());
  Table& table = table_of(buffer);
  const Run run = pages_of(part);
  SALA_RETURN_IF_ERROR(for_runs(
      table.pages, widened(table.pages, run), [](State state) { return state != State::kExclusive; },
      [&](const Run& found) { return own(table, found); }));
  return merge_behind(table, run);
}

int64_t PagedMemory::unclaimed_bytes(const Buffer& buffer, ByteRange part) const {
  if (part.bytes == 0) return 0;
  const std::lock_guard lock(mutex_);
  const Pages& pages = tables_.find(buffer.data())->second.pages;
  const Run run = widened(pages, pages_of(part));
  const auto begin = pages.begin() + static_cast<ptrdiff_t>(run.first);
  const auto lacking = std::count_if(begin, begin + static_cast<ptrdiff_t>(run.size()),
                                     [](const PageRef& page) { return state_of(page) != State::kExclusive; });
  return lacking * source_->page_bytes();
}

/// Puts new pages in the place of absent or shared ones.
Status PagedMemory::own(Table& table, Run run) {
  const auto created = source_->create(address(table.at, run.first), run.size());
  return created ? replace(table, run, *created) : created.error();
}

/// Puts new pages in the place of absent ones, as zeros, or of others, as copies.
Status PagedMemory::replace(Table& table, Run run, std::span<const PageRef> by) {
  char* at = address(table.at, run.first);
  const auto begin = table.pages.begin() + static_cast<ptrdiff_t>(run.first);
  const Pages before(begin, begin + static_cast<ptrdiff_t>(run.size()));
  const bool was_absent = before.front() == nullptr;
  if (!was_absent) {
    SALA_RETURN_IF_ERROR(source_->copy(by, at));
    SALA_RETURN_IF_ERROR(unmap(table, run));
  }
  Status made = map(table, run.first, by);
  if (made && was_absent) {
    made = source_->zero(at, run.size());
    if (!made) SALA_RETURN_IF_ERROR(unmap(table, run));
  }
  if (made || was_absent || map(table, run.first, before)) return made;
  return error(ErrorCode::kEngineFailed, "a part of a cache was lost: ", made.error().message);
}

/// Merges the group in front of each one that a claim was in, if it is complete and only this buffer has it.
Status PagedMemory::merge_behind(Table& table, Run claimed) {
  const size_t count = source_->merged_pages();
  if (count == 1) return success();
  for (size_t end = claimed.first / count * count; end < claimed.last; end += count) {
    if (end == 0 || table.pages[end] == nullptr) continue;
    const Run group{end - count, end};
    const auto begin = table.pages.begin() + static_cast<ptrdiff_t>(group.first);
    const bool is_ready = std::all_of(begin, begin + static_cast<ptrdiff_t>(count), [](const PageRef& page) {
      return state_of(page) == State::kExclusive && page->count() == 1;
    });
    if (!is_ready) continue;
    const auto merged = source_->create_merged();
    // Where there is no room for both, the group stays as it is.
    if (!merged && merged.error().code == ErrorCode::kOutOfMemory) return success();
    if (!merged) return merged.error();
    const Status replaced = replace(table, group, Pages(count, *merged));
    if (!replaced && replaced.error().code != ErrorCode::kOutOfMemory) return replaced;
  }
  return success();
}

/// Maps pages where a table has none, at both places. After an error they are at neither.
Status PagedMemory::map(Table& table, size_t first, std::span<const PageRef> pages) {
  SALA_RETURN_IF_ERROR(source_->map(address(table.at, first), pages));
  if (table.shown != nullptr) {
    if (const Status shown = source_->map(address(table.shown, first), pages); !shown) {
      SALA_RETURN_IF_ERROR(source_->unmap(address(table.at, first), pages.size()));
      return shown;
    }
  }
  std::copy(pages.begin(), pages.end(), table.pages.begin() + static_cast<ptrdiff_t>(first));
  return success();
}

/// Unmaps pages, all of them present, at both places.
Status PagedMemory::unmap(Table& table, Run run) {
  if (table.shown != nullptr) SALA_RETURN_IF_ERROR(source_->unmap(address(table.shown, run.first), run.size()));
  SALA_RETURN_IF_ERROR(source_->unmap(address(table.at, run.first), run.size()));
  std::fill_n(table.pages.begin() + static_cast<ptrdiff_t>(run.first), run.size(), nullptr);
  return success();
}

Status PagedMemory::unmap_present(Table& table, Run among) {
  return for_runs(table.pages, among, is_present, [&](const Run& run) { return unmap(table, run); });
}

Status PagedMemory::drop(Buffer& buffer, ByteRange part) {
  const std::lock_guard lock(mutex_);
  const int64_t page = source_->page_bytes();
  Table& table = table_of(buffer);
  const Run whole{page_of(part.offset + page - 1), page_of(part.offset + part.bytes)};
  return unmap_present(table, narrowed(table.pages, whole));
}

Status PagedMemory::clear(Buffer& buffer) {
  const std::lock_guard lock(mutex_);
  Table& table = table_of(buffer);
  return unmap_present(table, table.all());
}

Status PagedMemory::share(Buffer& to, const Buffer& from, std::span<const ByteRange>) {
  const std::lock_guard lock(mutex_);
  SALA_RETURN_IF_ERROR(source_->check_process());
  Table& taker = table_of(to);
  const Pages& pages = table_of(from).pages;
  const Status shared = for_runs(pages, {0, pages.size()}, is_present, [&](const Run& run) {
    return map(taker, run.first, std::span(pages).subspan(run.first, run.size()));
  });
  if (!shared) SALA_RETURN_IF_ERROR(unmap_present(taker, taker.all()));
  return shared;
}

Status PagedMemory::show(Buffer& buffer, Buffer& at, int64_t offset) {
  const std::lock_guard lock(mutex_);
  SALA_RETURN_IF_ERROR(source_->check_process());
  Table& table = table_of(buffer);
  if (table.shown != nullptr) {
    return error(ErrorCode::kInvalidArgument, "this buffer is shown at a second place already: hide it first");
  }
  if (offset < 0 || offset % source_->page_bytes() != 0 || buffer.bytes() > at.bytes() - offset) {
    return error(ErrorCode::kInvalidArgument, "cannot show ", buffer.bytes(), " bytes from ", offset, " on among ",
                 at.bytes(), ": they must fit there, from a multiple of ", source_->page_bytes(), " on");
  }
  table.shown = static_cast<char*>(at.data()) + offset;
  size_t end = 0;
  const Status shown = for_runs(table.pages, table.all(), is_present, [&](const Run& run) -> Status {
    const auto pages = std::span<const PageRef>(table.pages).subspan(run.first, run.size());
    SALA_RETURN_IF_ERROR(source_->map(address(table.shown, run.first), pages));
    end = run.last;
    return success();
  });
  if (!shown) SALA_RETURN_IF_ERROR(hide(table, end));
  return shown;
}

Status PagedMemory::hide(Buffer& buffer) {
  const std::lock_guard lock(mutex_);
  Table& table = table_of(buffer);
  return table.shown != nullptr ? hide(table, table.pages.size()) : success();
}

/// Hides a buffer of which the pages up to `end` are mapped at its second place.
Status PagedMemory::hide(Table& table, size_t end) {
  char* shown = std::exchange(table.shown, nullptr);
  return for_runs(table.pages, {0, end}, is_present,
                  [&](const Run& run) { return source_->unmap(address(shown, run.first), run.size()); });
}

Status PagedMemory::read(void* host, const void* from, int64_t bytes) {
  SALA_RETURN_IF_ERROR(source_->check_process());
  return source_->read(host, from, bytes);
}

Status PagedMemory::write(void* to, const void* host, int64_t bytes) {
  SALA_RETURN_IF_ERROR(source_->check_process());
  return source_->write(to, host, bytes);
}

Status PagedMemory::copy(void* to, const void* from, int64_t bytes) {
  SALA_RETURN_IF_ERROR(source_->check_process());
  return source_->copy(to, from, bytes);
}

int64_t PagedMemory::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return source_->live_pages() * source_->page_bytes();
}

void PagedMemory::release(void* data, int64_t bytes) noexcept {
  // What is the parent's stays: a thread of the parent may have held the lock when this process began.
  if (!source_->check_process()) return;
  const std::lock_guard lock(mutex_);
  const auto table = tables_.find(data);
  // A driver that cannot unmap has lost its context, and with it the pages.
  static_cast<void>(unmap_present(table->second, table->second.all()));
  tables_.erase(table);
  source_->free(static_cast<char*>(data), bytes);
}

}  // namespace sala
