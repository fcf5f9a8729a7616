// The tensors of a step that are neither caches nor weights: token inputs and logits, on the host (pinned) and on the
// GPU, and the activations. Their addresses never change, so that a captured decode step stays valid. Only a step of
// the prefill profile that gives more logits than one of decode has them elsewhere, in memory that is taken when it is
// first needed. The sessions of an engine share all of it, one step after the other: a step has the GPU for itself, and
// activations are large.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/manifest.h"
#include "cuda/device_memory.h"
#include "sala/engine.h"

namespace sala::tensorrt {

/// Sizes of a step's buffers.
struct StepBufferSizes {
  struct Part {
    std::string name;
    int64_t bytes = 0;  // of an input in the largest step of any profile, of logits in that of decode
  };

  std::vector<Part> inputs;  // token inputs
  Part logits;
  int64_t activation_bytes = 0;
};

class StepBuffers {
 public:
  StepBuffers(cuda::DeviceMemory& device, cuda::PinnedMemory& pinned) : device_memory_(device), pinned_(pinned) {}
  static Expected<std::shared_ptr<StepBuffers>> create(cuda::DeviceMemory& device, cuda::PinnedMemory& pinned,
                                                       const StepBufferSizes& sizes);

  /// Address on the GPU; null for a name that is none of these.
  void* device(std::string_view name) const;
  /// The same tensor's address on the host.
  void* host(std::string_view name) const;
  /// Bytes that a tensor may have at most.
  int64_t capacity(std::string_view name) const;

  const Buffer& activations() const { return activations_; }

  /// Makes room for logits of so many bytes. kOutOfMemory leaves what there was.
  Status reserve_logits(int64_t bytes);
  /// Where logits of so many bytes, for which there is room, are on the GPU.
  void* device_logits(int64_t bytes) const;
  /// The same on the host.
  void* host_logits(int64_t bytes) const;

  /// Held from the staging of a step's inputs until its logits are read and nothing of it is on a stream any more.
  std::mutex& turn() { return turn_; }
  /// Makes the inputs those of token 0 at position 0.
  void clear_inputs();

 private:
  struct Place {
    void* device;
    void* host;
    int64_t bytes;
  };

  cuda::DeviceMemory& device_memory_;
  cuda::PinnedMemory& pinned_;
  std::map<std::string, Place, std::less<>> places_;
  Buffer device_io_;
  Buffer host_io_;
  Buffer activations_;
  Buffer device_rows_;  // logits of more tokens than a decode step gives
  Buffer host_rows_;
  std::mutex turn_;
};

}  // namespace sala::tensorrt
