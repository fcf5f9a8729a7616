// The weights of an engine on the GPU, which all its contexts read.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bundle/manifest.h"
#include "sala/engine.h"

namespace sala::tensorrt {

/// Where each weight begins in one block of device memory, in bytes: at a multiple of 256, as TensorRT wants it.
class WeightLayout {
 public:
  /// Of inputs that `check_inputs` has taken.
  explicit WeightLayout(std::span<const WeightInput> inputs);

  int64_t offset(size_t input) const { return offsets_[input]; }
  int64_t bytes() const { return bytes_; }

 private:
  std::vector<int64_t> offsets_;
  int64_t bytes_ = 0;
};

/// Immutable once they are uploaded.
class DeviceWeights {
 public:
  struct Placed {
    std::string name;
    void* data;
  };

  DeviceWeights() = default;
  /// `arena` holds the inputs as `layout` says.
  DeviceWeights(Buffer arena, std::span<const WeightInput> inputs, const WeightLayout& layout);

  const std::vector<Placed>& placed() const { return placed_; }

 private:
  Buffer arena_;
  std::vector<Placed> placed_;
};

}  // namespace sala::tensorrt
