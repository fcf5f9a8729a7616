// Runs an operator's launches on a stream.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include "common/counters.h"
#include "common/kernel.h"
#include "common/operator.h"

namespace sala {

/// Device memory of one call. Outputs that update an input may be that input's buffer or another one.
struct Buffers {
  std::span<const void* const> inputs;
  std::span<void* const> outputs;
  void* workspace;
};

/// Loads kernels once per device and launch sequence, owns the counters, and runs the kernels. For one thread at a
/// time.
class Launcher {
 public:
  /// Loads what `call` needs on the current device and makes its counters, so that `run` does neither.
  Status prepare(const Operator& op, const Call& call);

  /// Enqueues the launches, also into a stream capture. Fails if they take counters and `prepare` has not made them.
  /// `inputs` gives the sizes of inputs that must be copied to where they are updated.
  Status run(const Operator& op, const Call& call, std::span<const TensorView> inputs, const Buffers& buffers,
             CUstream stream);

 private:
  struct Sequence {
    CUdevice device;
    DataType activation;
    std::span<const Launch> launches;
    std::vector<std::shared_ptr<const Kernel>> kernels;
  };

  Expected<const Sequence*> find_or_load(const CudaDriver& driver, const Operator& op, const Call& call);

  std::vector<Sequence> sequences_;
  Counters counters_;
};

}  // namespace sala
