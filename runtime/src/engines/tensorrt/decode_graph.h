// A decode step as a CUDA graph: one launch instead of hundreds, the same at every position.

#pragma once

#include <functional>
#include <utility>

#include "cuda/cuda_driver.h"

namespace sala::tensorrt {

/// Whatever it needs the GPU's context for, the caller has made current.
class DecodeGraph {
 public:
  DecodeGraph() = default;
  DecodeGraph(DecodeGraph&& other) noexcept
      : driver_(other.driver_), executable_(std::exchange(other.executable_, nullptr)) {}
  DecodeGraph& operator=(DecodeGraph&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(executable_, other.executable_);
    return *this;
  }
  ~DecodeGraph();

  /// Captures what `record` puts on `stream`; nothing of it runs.
  static Expected<DecodeGraph> capture(const cuda::CudaDriver& driver, cuda::CUstream stream,
                                       const std::function<Status()>& record);

  explicit operator bool() const { return executable_ != nullptr; }

  Status launch(cuda::CUstream stream) const;

 private:
  const cuda::CudaDriver* driver_ = nullptr;
  cuda::CUgraphExec executable_ = nullptr;
};

}  // namespace sala::tensorrt
