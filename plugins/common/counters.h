// Device memory of a launcher that is zero between calls.

#pragma once

#include <cstdint>
#include <vector>

#include "common/cuda_driver.h"
#include "common/result.h"

namespace sala {

/// The counters of one launcher, in every context in which it has been prepared. For one thread at a time.
class Counters {
 public:
  Counters() = default;
  Counters(const Counters&) = delete;
  Counters& operator=(const Counters&) = delete;
  ~Counters();

  /// Makes the counters of the current context, zeroed for every stream, unless it has as many bytes of them. Waits for
  /// the GPU, but does not disturb a stream capture of another thread.
  Status prepare(const CudaDriver& driver, int64_t bytes);

  /// Their address in the current context; 0 if it has not as many bytes of them.
  Expected<CUdeviceptr> find(const CudaDriver& driver, int64_t bytes) const;

 private:
  struct Block {
    CUcontext context;
    CUdeviceptr address;
    int64_t bytes;
  };

  Status add(const CudaDriver& driver, CUcontext context, int64_t bytes);

  const CudaDriver* driver_ = nullptr;
  // Larger ones come behind. Smaller ones stay, because a captured graph goes on counting in them.
  std::vector<Block> blocks_;
};

}  // namespace sala
