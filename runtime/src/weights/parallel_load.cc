#include "weights/parallel_load.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace sala {

namespace {

// Often enough for a progress bar and for Ctrl-C.
constexpr std::chrono::milliseconds kProgressInterval{50};

Error stopped() { return error(ErrorCode::kStopped, "loading the weights was stopped"); }

}  // namespace

std::optional<size_t> ParallelLoad::next() {
  if (ending_) return std::nullopt;
  const size_t item = next_++;
  return item < options_.items ? std::optional(item) : std::nullopt;
}

Status ParallelLoad::advance(int64_t bytes) {
  done_bytes_ += bytes;
  if (ending_) return stopped();
  return success();
}

void ParallelLoad::run(const std::function<Status(ParallelLoad&)>& worker) noexcept {
  try {
    finish(worker(*this));
  } catch (const std::bad_alloc&) {
    finish(error(ErrorCode::kOutOfMemory,
                 "the host has no memory left to load the weights with: end other programs, or give fewer threads"));
  }
}

void ParallelLoad::finish(Status outcome) {
  const std::lock_guard lock(mutex_);
  if (!outcome) {
    if (outcome_) outcome_ = std::move(outcome);
    ending_ = true;
  }
  ++finished_;
  changed_.notify_one();
}

void ParallelLoad::watch(size_t threads) {
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, kProgressInterval, [&] { return finished_ == threads; })) {
    if (!options_.on_progress || ending_) continue;
    lock.unlock();  // the workers do not wait for what the caller does
    const bool goes_on = options_.on_progress(done_bytes_, options_.total_bytes);
    lock.lock();
    if (goes_on) continue;
    if (outcome_) outcome_ = stopped();
    ending_ = true;
  }
}

Status load_in_parallel(const ParallelLoadOptions& options, const std::function<Status(ParallelLoad&)>& worker) {
  const size_t wanted =
      options.threads > 0 ? static_cast<size_t>(options.threads) : std::thread::hardware_concurrency();
  if (options.on_progress && !options.on_progress(0, options.total_bytes)) return stopped();
  ParallelLoad load(options);
  std::vector<std::jthread> threads;
  // Also where `on_progress` throws: the threads, which are joined after this, need not go on.
  struct Ending {
    std::atomic<bool>& ending;
    ~Ending() { ending = true; }
  } ending{load.ending_};
  try {
    for (size_t i = 0; i < std::clamp<size_t>(wanted, 1, std::max<size_t>(options.items, 1)); ++i) {
      threads.emplace_back([&] { load.run(worker); });
    }
  } catch (const std::system_error& failure) {
    // Fewer threads do it too.
    if (threads.empty()) return error(ErrorCode::kEngineFailed, "no thread to load with: ", failure.what());
  }
  load.watch(threads.size());
  SALA_RETURN_IF_ERROR(load.outcome_);
  if (options.on_progress && !options.on_progress(options.total_bytes, options.total_bytes)) return stopped();
  return success();
}

}  // namespace sala
