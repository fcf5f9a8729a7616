// Inputs of products in the order in which the numbers of weights come. Compiled once per SIMD level.

#pragma once

#include "cpu/short_floats.h"
#include "linear/block_rounding_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

/// Where the numbers of a step's slots come from, and what they are multiplied by.
template <class Format>
struct Order {
  int16_t index[Format::kVectors * kLanes][Format::Target::kPerSlot];
  float factor[Format::kVectors * kLanes];
};

template <class Format>
constexpr Order<Format> order_of() {
  Order<Format> order{};
  for (int slot = 0; slot < Format::kVectors * kLanes; ++slot) {
    const int vector = slot / kLanes;
    for (int half = 0; half < Format::Target::kPerSlot; ++half) {
      order.index[slot][half] = static_cast<int16_t>(Format::order(vector, slot % kLanes, half));
    }
    order.factor[slot] = 1.0f / Format::excess(vector);
  }
  return order;
}

/// The inputs of one step of one token, rounded as the product asks; 0, which `out` comes with, beyond the columns.
template <int kCount>
inline void step_inputs(const Product& product, const float* x, int64_t first, float (&out)[kCount]) {
  if (product.kind == WeightKind::kMxfp8) return round_blocks(x, first, product.columns, out);
  const int64_t rest = product.columns - first;
  if (rest >= kCount) {
    __builtin_memcpy(out, x + first, sizeof out);
  } else {
    __builtin_memcpy(out, x + first, static_cast<size_t>(rest) * sizeof(float));
  }
  if (!product.round_inputs) return;
  for (int i = 0; i < kCount; i += kLanes) store(out + i, as_bfloat16(load(out + i)));
}

/// Writes inputs in the order of a format's numbers, for tiles of tokens side by side.
template <class Format>
void pack_as(const Product& product, const Inputs& inputs, int64_t tile_tokens, float* tile) {
  using Target = typename Format::Target;
  static constexpr Order<Format> kOrder = order_of<Format>();
  constexpr int kStepSlots = Format::kVectors * kLanes;
  constexpr int kTogether = Target::kSlotsTogether;
  for (int64_t slot = inputs.first_slot; slot < inputs.last_slot; slot += kStepSlots) {
    for (int64_t t = 0; t < tile_tokens; ++t) {
      float numbers[kStepWeights<Format>] = {};
      if (t < inputs.tokens) {
        step_inputs(product, inputs.x + t * product.columns, slot / kStepSlots * kStepWeights<Format>, numbers);
      }
      float* out = tile + slot * tile_tokens + t * kTogether;
      for (int i = 0; i < kStepSlots; ++i) {
        out[i / kTogether * kTogether * tile_tokens + i % kTogether] =
            Target::slot(numbers, kOrder.index[i], kOrder.factor[i]);
      }
    }
  }
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
