// Loading many things on several threads, with progress, a way to stop, and the first error.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>

#include "sala/status.h"

namespace sala {

struct ParallelLoadOptions {
  size_t items = 0;
  int64_t total_bytes = 0;  // of all items, for progress
  int32_t threads = 0;      // at most; 0: as many as the machine has cores
  /// Called on the thread that waits for the load, at its beginning, now and then, and at its end; false stops it.
  std::function<bool(int64_t done, int64_t total)> on_progress{};
};

/// What the workers of a load share.
class ParallelLoad {
 public:
  explicit ParallelLoad(const ParallelLoadOptions& options) : options_(options) {}

  /// The next item to load; none when all are taken, or the load ends.
  std::optional<size_t> next();
  /// Told of bytes that were loaded. kStopped if the load is to end.
  Status advance(int64_t bytes);

 private:
  friend Status load_in_parallel(const ParallelLoadOptions& options,
                                 const std::function<Status(ParallelLoad&)>& worker);
  void run(const std::function<Status(ParallelLoad&)>& worker) noexcept;
  void finish(Status outcome);
  /// Tells of progress until all workers have finished.
  void watch(size_t threads);

  const ParallelLoadOptions& options_;
  std::atomic<size_t> next_ = 0;
  std::atomic<int64_t> done_bytes_ = 0;
  std::atomic<bool> ending_ = false;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t finished_ = 0;         // workers
  Status outcome_ = success();  // the first error
};

/// Runs `worker` on several threads, each of which takes items until there are none. The first error ends the load, as
/// does `on_progress`, with kStopped. Returns when all threads have ended.
Status load_in_parallel(const ParallelLoadOptions& options, const std::function<Status(ParallelLoad&)>& worker);

}  // namespace sala
