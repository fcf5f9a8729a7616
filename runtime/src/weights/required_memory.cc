#include "weights/required_memory.h"

#include <algorithm>
#include <iterator>
#include <string>
#include <string_view>

namespace sala {

namespace {

constexpr std::string_view kLayers = "model.layers.";

/// Bits that a weight of a product takes, its share of the scales included, in the order of preference.
struct Bits {
  std::string_view precision;
  double bits;
};
constexpr Bits kBits[] = {{"bf16", 16.0}, {"fp16", 16.0}, {"mxfp8", 8.25}, {"fp8", 8.0},
                          {"int8", 8.0},  {"nvfp4", 4.5}, {"int4", 4.125}};
constexpr std::string_view kSuggested[] = {"fp8", "int4"};

double bits_of(std::string_view precision) {
  return std::ranges::find(kBits, precision, [](const Bits& each) { return each.precision; })->bits;
}

/// Bytes of the weights that a precision changes: those of the layers, without embedding and head.
int64_t layer_bytes(const Manifest& manifest) {
  int64_t bytes = 0;
  for (const WeightInput& input : manifest.cpu.weights) {
    if (input.spec.name.starts_with(kLayers)) bytes += input.bytes();
  }
  return bytes;
}

std::string gigabytes(int64_t bytes) {
  const int64_t tenths = (bytes + 50'000'000) / 100'000'000;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " GB";
}

}  // namespace

Status require_memory(const Manifest& manifest, int64_t needed, int64_t memory) {
  if (needed <= memory) return success();
  const int64_t layers = layer_bytes(manifest);
  std::string advice = "run it on a machine with more memory";
  for (const std::string_view precision : kSuggested) {
    const double ratio = bits_of(precision) / bits_of(manifest.precision);
    const int64_t bytes = needed - layers + static_cast<int64_t>(static_cast<double>(layers) * ratio);
    if (ratio >= 1.0 || bytes > memory) continue;
    advice.insert(0, std::string(precision) + " would take about " + gigabytes(bytes) +
                         ", so build the bundle with --precision " + std::string(precision) + ", or ");
    break;
  }
  return error(ErrorCode::kOutOfMemory, "the weights of this bundle take ", gigabytes(needed),
               " of memory on the CPU, this machine or its control group has ", gigabytes(memory), ": ", advice);
}

}  // namespace sala
