// The weights of the CPU graphs in host memory.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/machine_memory.h"
#include "base/mapped_file.h"
#include "bundle/manifest.h"
#include "sala/engine.h"
#include "sala/model.h"
#include "sala/status.h"
#include "weights/weight_source.h"

namespace sala {

/// One weight in host memory, as its `spec` says. It lies in a file that is mapped, at any address, or else in a buffer
/// of its own.
struct Weight {
  TensorSpec spec;
  Shape shape;
  const void* data = nullptr;
  Buffer buffer{};
};

/// Weights, and the files that they lie in.
class Weights {
 public:
  Weights() = default;
  Weights(std::vector<Weight> weights, std::vector<std::shared_ptr<const MappedFile>> files)
      : weights_(std::move(weights)), files_(std::move(files)) {}

  std::span<const Weight> all() const { return weights_; }
  /// Whether the files are still those that were loaded: kBundleDamaged or kWeightsUnsuitable, naming the first that is
  /// not. What was computed before with such weights is worth nothing.
  Status check() const;

 private:
  std::vector<Weight> weights_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
};

/// Loads all weights of `manifest.cpu` on `options.threads` threads and tells `options.on_progress`. A weight of
/// 1 MiB or more whose stored bytes are taken as they are is not copied, but hashed and mapped, if its file can be
/// mapped. Memory holds little more than the result.
///
/// kOutOfMemory before anything is loaded if the weights take more than `memory` bytes, which is what this process can
/// have at most: mapped weights would then be read from the disk for every token. kBundleDamaged if the parts of a
/// weight do not fill its shape; and what reading from `source` gives.
Expected<Weights> load_weights(const Manifest& manifest, const WeightSource& source, const LoadOptions& options,
                               std::optional<int64_t> memory = memory_limit());

}  // namespace sala
