#include "engines/tensorrt/device_weights.h"

#include <utility>

namespace sala::tensorrt {

namespace {

constexpr int64_t kAlignment = 256;

}  // namespace

WeightLayout::WeightLayout(std::span<const WeightInput> inputs) {
  for (const WeightInput& input : inputs) {
    offsets_.push_back(bytes_);
    bytes_ += (input.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  }
}

DeviceWeights::DeviceWeights(Buffer arena, std::span<const WeightInput> inputs, const WeightLayout& layout)
    : arena_(std::move(arena)) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    placed_.push_back({inputs[i].spec.name, static_cast<char*>(arena_.data()) + layout.offset(i)});
  }
}

}  // namespace sala::tensorrt
