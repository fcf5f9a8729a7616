#include "engines/tensorrt/weight_upload.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "weights/parallel_load.h"
#include "weights/weight_input.h"

namespace sala::tensorrt {

namespace {

// Hashing is the slowest part, at one to two gigabytes a second on a core: eight cores outrun most disks.
constexpr int32_t kMostThreads = 8;

// A copy takes far longer than its start, a block is still in the processor's cache when it is hashed, and what is
// pinned, two blocks for each thread, stays at 32 MiB.
constexpr int64_t kBlockBytes = int64_t{2} << 20;

/// Pinned memory with a stream of its own, so that waiting for it does not wait for the other block.
class StagingBlock {
 public:
  explicit StagingBlock(const cuda::CudaDriver& driver) : driver_(driver) {}
  StagingBlock(const StagingBlock&) = delete;
  StagingBlock& operator=(const StagingBlock&) = delete;
  ~StagingBlock() {
    if (stream_ == nullptr) return;
    // After an error a copy may still read the memory. Its outcome does not matter any more.
    driver_.stream_synchronize(stream_);
    driver_.stream_destroy(stream_);
  }

  Status open(cuda::PinnedMemory& pinned) {
    auto memory = pinned.allocate(kBlockBytes);
    if (!memory) return memory.error();
    memory_ = *std::move(memory);
    return driver_.check(driver_.stream_create(&stream_, cuda::kStreamNonBlocking), "open a stream to upload weights");
  }

  void* data() const { return memory_.data(); }

  /// Starts to copy its first bytes to the GPU. `weight` outlives the copy.
  Status copy(void* to, int64_t bytes, const std::string& weight) {
    weight_ = &weight;
    return check(driver_.memcpy_htod_async(reinterpret_cast<cuda::CUdeviceptr>(to), data(), static_cast<size_t>(bytes),
                                           stream_));
  }

  /// Until its last copy has ended, so that it may be filled again.
  Status wait() { return weight_ == nullptr ? success() : check(driver_.stream_synchronize(stream_)); }

 private:
  Status check(cuda::CUresult result) const {
    if (result == cuda::kCudaSuccess) return success();
    return driver_.check(result, "copy the weight " + *weight_ + " to the GPU");
  }

  const cuda::CudaDriver& driver_;
  Buffer memory_;
  cuda::CUstream stream_ = nullptr;
  const std::string* weight_ = nullptr;  // that its last copy is part of
};

/// One thread of an upload.
class Uploader {
 public:
  Uploader(const cuda::Device& device, const WeightSource& source)
      : current_(device), source_(source), blocks_{StagingBlock(device.driver()), StagingBlock(device.driver())} {}

  Status open(cuda::PinnedMemory& pinned) {
    for (StagingBlock& block : blocks_) SALA_RETURN_IF_ERROR(block.open(pinned));
    return success();
  }

  /// Puts an input to its place on the GPU; the last copies may still be under way when it returns.
  Status upload(const WeightInput& input, char* to, ParallelLoad& load) {
    InputReader reader(input, source_);
    while (true) {
      StagingBlock& block = blocks_[next_block_];
      SALA_RETURN_IF_ERROR(block.wait());
      const auto bytes = reader.next(block.data(), kBlockBytes);
      if (!bytes) return bytes.error();
      if (*bytes == 0) return success();
      SALA_RETURN_IF_ERROR(block.copy(to, *bytes, input.spec.name));
      SALA_RETURN_IF_ERROR(load.advance(*bytes));
      to += *bytes;
      next_block_ = 1 - next_block_;
    }
  }

  Status finish() {
    for (StagingBlock& block : blocks_) SALA_RETURN_IF_ERROR(block.wait());
    return success();
  }

 private:
  cuda::Device::Current current_;
  const WeightSource& source_;
  StagingBlock blocks_[2];
  size_t next_block_ = 0;
};

/// The largest first, so that all threads end at about the same time.
std::vector<size_t> by_size(std::span<const WeightInput> inputs) {
  std::vector<size_t> order(inputs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t left, size_t right) { return inputs[left].bytes() > inputs[right].bytes(); });
  return order;
}

}  // namespace

Expected<DeviceWeights> upload_weights(const cuda::Device& device, cuda::DeviceMemory& memory,
                                       cuda::PinnedMemory& pinned, std::span<const WeightInput> inputs,
                                       const WeightSource& source, const LoadOptions& options) {
  int64_t total = 0;
  for (const WeightInput& input : inputs) total += input.bytes();
  const WeightLayout layout(inputs);
  auto arena = memory.reserve(layout.bytes(), "end other programs on the GPU");
  if (!arena) return arena.error();
  const std::vector<size_t> order = by_size(inputs);
  const auto work = [&](ParallelLoad& load) -> Status {
    Uploader uploader(device, source);
    SALA_RETURN_IF_ERROR(uploader.open(pinned));
    while (const auto item = load.next()) {
      const size_t input = order[*item];
      char* const to = static_cast<char*>(arena->data()) + layout.offset(input);
      SALA_RETURN_IF_ERROR(uploader.upload(inputs[input], to, load));
    }
    return uploader.finish();
  };
  const auto cores = static_cast<int32_t>(std::thread::hardware_concurrency());
  const int32_t threads = std::min(options.threads > 0 ? options.threads : cores, kMostThreads);
  SALA_RETURN_IF_ERROR(load_in_parallel({inputs.size(), total, threads, options.on_progress}, work));
  return DeviceWeights(*std::move(arena), inputs, layout);
}

}  // namespace sala::tensorrt
