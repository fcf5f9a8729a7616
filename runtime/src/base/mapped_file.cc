#include "base/mapped_file.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

namespace sala {

/// Entries are written under a mutex, used again, and never freed, so that the handler can walk them at any time.
struct MappedFile::Range {
  std::atomic<uint32_t> version = 0;  // odd while the entry is written
  std::atomic<uintptr_t> begin = 0;   // 0: the entry is free
  std::atomic<uintptr_t> end = 0;
  std::atomic<bool> is_damaged = false;
  Range* next = nullptr;

  void set(uintptr_t from, uintptr_t to) {
    version.fetch_add(1);
    begin = from;
    end = to;
    is_damaged = false;
    version.fetch_add(1);
  }

  /// Where the mapping at `address` ends; 0 if it is not this one.
  uintptr_t end_of(uintptr_t address) const {
    const uint32_t before = version;
    const uintptr_t from = begin, to = end;
    // An entry that is written meanwhile is not of a mapping that somebody reads.
    const bool is_whole = before % 2 == 0 && version == before;
    return is_whole && from != 0 && from <= address && address < to ? to : 0;
  }
};

namespace {

using Range = MappedFile::Range;

static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

std::atomic<Range*> ranges = nullptr;
struct sigaction handler_before = {};
const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));

/// Puts zeros where a mapping of ours has failed, up to its end: what was cut off is gone as a whole. Only what a
/// signal handler may call.
bool repair(uintptr_t address) {
  for (Range* range = ranges; range != nullptr; range = range->next) {
    const uintptr_t end = range->end_of(address);
    if (end == 0) continue;
    const uintptr_t begin = address / page_bytes * page_bytes;
    range->is_damaged = true;
    return mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                0) != MAP_FAILED;
  }
  return false;
}

/// Does what would have been done without our handler.
void pass_on(int signal, siginfo_t* info, void* context) {
  if ((handler_before.sa_flags & SA_SIGINFO) != 0) return handler_before.sa_sigaction(signal, info, context);
  const bool is_sent = info->si_code <= 0;  // by a process, not by a fault
  if (handler_before.sa_handler == SIG_IGN && is_sent) return;
  if (handler_before.sa_handler != SIG_DFL && handler_before.sa_handler != SIG_IGN) {
    return handler_before.sa_handler(signal);
  }
  // A fault comes again when the handler returns, and then ends the process, as it does where signals are ignored.
  std::signal(signal, SIG_DFL);
  if (is_sent) std::raise(signal);
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int error_before = errno;
  if (info->si_code <= 0 || !repair(reinterpret_cast<uintptr_t>(info->si_addr))) pass_on(signal, info, context);
  errno = error_before;
}

/// The handler, as long as this library is loaded.
class Handler {
 public:
  Handler() {
    struct sigaction ours = {};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, nullptr, &handler_before);  // the handler may run before the next line has ended
    sigaction(SIGBUS, &ours, nullptr);
  }
  Handler(const Handler&) = delete;
  Handler& operator=(const Handler&) = delete;
  ~Handler() {
    struct sigaction now = {};
    sigaction(SIGBUS, nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_bus_error) {
      sigaction(SIGBUS, &handler_before, nullptr);
    }
  }
};

std::mutex writing;  // of entries

/// An entry for a mapping.
Range* take_range(uintptr_t begin, uintptr_t end) {
  const std::lock_guard lock(writing);
  static const Handler handler;
  Range* range = ranges;
  while (range != nullptr && range->begin != 0) range = range->next;
  const bool is_new = range == nullptr;
  if (is_new) {
    range = new Range;
    range->next = ranges;
  }
  range->set(begin, end);
  if (is_new) ranges = range;
  return range;
}

void give_back(Range& range) {
  const std::lock_guard lock(writing);
  range.set(0, 0);
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::map(std::shared_ptr<const File> file) {
  struct stat status;
  if (fstat(file->descriptor(), &status) != 0) return nullptr;
  void* data = mmap(nullptr, static_cast<size_t>(file->bytes()), PROT_READ, MAP_SHARED, file->descriptor(), 0);
  if (data == MAP_FAILED) return nullptr;
  return std::shared_ptr<const MappedFile>(
      new MappedFile(std::move(file), static_cast<const char*>(data), status.st_mtim));
}

MappedFile::MappedFile(std::shared_ptr<const File> file, const char* data, timespec written)
    : file_(std::move(file)), data_(data), written_(written) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  range_ = take_range(begin, begin + static_cast<uintptr_t>(file_->bytes()));
}

MappedFile::~MappedFile() {
  give_back(*range_);  // before something else can lie there
  munmap(const_cast<char*>(data_), static_cast<size_t>(file_->bytes()));
}

Status MappedFile::check() const {
  const auto damaged = [&](const auto&... what) {
    const bool is_of_bundle = file_->code() == ErrorCode::kBundleDamaged;
    return error(
        file_->code(), file_->path().string(), what...,
        is_of_bundle ? "copy the bundle again and load it again" : "copy the weights again and load them again");
  };
  struct stat now;
  if (fstat(file_->descriptor(), &now) != 0) return damaged(" cannot be looked at: ", std::strerror(errno), ": ");
  if (now.st_size < file_->bytes()) {
    return damaged(" was cut short while it was mapped: it has ", now.st_size, " bytes of ", file_->bytes(), ", ");
  }
  const bool is_written = now.st_mtim.tv_sec != written_.tv_sec || now.st_mtim.tv_nsec != written_.tv_nsec;
  if (is_written || now.st_size != file_->bytes())
    return damaged(" was written to, or its time was set, while it was mapped: ");
  if (range_->is_damaged) return damaged(" could not be read while it was mapped: look at its disk, then ");
  return success();
}

}  // namespace sala
