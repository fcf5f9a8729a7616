// Rows of stored weights as the numbers that products multiply. Compiled once per SIMD level.

#pragma once

#include "linear/scales_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

/// Steps [first, last) of a product, whose slots become rows of a panel.
struct Segment {
  int64_t first;
  int64_t last;
};

template <class Format, int kVector>
inline __attribute__((always_inline)) void store_vectors(const typename Format::Raw& raw, bool is_scaled, Vec scale,
                                                         float* out) {
  if constexpr (kVector < Format::kVectors) {
    auto numbers = Format::template get<kVector>(raw);
    if (is_scaled) numbers = Format::Target::scaled(numbers, scale);
    __builtin_memcpy(out + kVector * kLanes, &numbers, sizeof numbers);
    store_vectors<Format, kVector + 1>(raw, is_scaled, scale, out);
  }
}

/// Where scales enter a panel: multiplied into its numbers, or not at all.
enum class Folding { kNone, kWholeSteps, kLanes };

/// The slots of one row for one segment.
template <class Format, Folding kFolding>
void expand_row(const Product& product, const uint8_t* codes, const float* scales, Segment segment, float* out) {
  constexpr int64_t kStepSlots = Format::kVectors * kLanes;
  const int64_t whole_steps = product.columns / kStepWeights<Format>;
  const int64_t shared = product.scale_columns;
  uint8_t padded[kVectorBytes] = {};
  for (int64_t step = segment.first; step < segment.last; ++step, out += kStepSlots) {
    const uint8_t* from = codes + step * kVectorBytes;
    // The same place of the next segment, which is needed when the tokens of this one are done.
    prefetch<2>(from, (segment.last - segment.first) * kVectorBytes);
    if (step == whole_steps) {
      __builtin_memcpy(padded, from,
                       static_cast<size_t>(row_bytes(product.kind, product.columns) - step * kVectorBytes));
      from = padded;
    }
    Vec scale{};
    if constexpr (kFolding == Folding::kWholeSteps) scale = broadcast(scales[step * kStepWeights<Format> / shared]);
    if constexpr (kFolding == Folding::kLanes) {
      scale = lane_scales<Format>(scales + step * (kStepWeights<Format> / shared), shared);
    }
    store_vectors<Format, 0>(Format::load(from), kFolding != Folding::kNone, scale, out);
  }
}

/// How a call runs over its segments.
struct Course {
  Folding folding;
  ScaleUse use;
  int64_t steps_of_factor;  // steps whose sums share a factor
};

template <class Format>
Course course_of(const Product& product, ScaleUse use) {
  const int64_t steps = steps_of<Format>(product);
  if (use == ScaleUse::kNumbers) return {Folding::kNone, use, steps};
  if (use == ScaleUse::kLanes) return {Folding::kLanes, use, steps};
  if (product.scale_columns == product.columns) return {Folding::kNone, use, steps};
  // Exact numbers take their scales as they are; numbers in 16 bits would be rounded.
  if (Format::Target::kPerSlot == 1) return {Folding::kWholeSteps, use, steps};
  return {Folding::kNone, use, product.scale_columns / kStepWeights<Format>};
}

/// The slots of one row for one segment; `scales` are those of the row, decoded, unless it becomes numbers first.
template <class Format>
void expand_segment(const Product& product, const Course& course, const Row& row, const float* scales, Segment segment,
                    float* out) {
  if (course.use == ScaleUse::kNumbers) {
    constexpr int64_t kStepSlots = Format::kVectors * kLanes;
    const int64_t first = segment.first * kStepSlots, end = segment.last * kStepSlots;
    const int64_t last = product.columns < end ? product.columns : end;
    expand_numbers(product, row, first, last, out);
    for (int64_t i = last; i < end; ++i) out[i - first] = 0.0f;
  } else if (course.folding == Folding::kNone) {
    expand_row<Format, Folding::kNone>(product, row.codes, scales, segment, out);
  } else if (course.folding == Folding::kWholeSteps) {
    expand_row<Format, Folding::kWholeSteps>(product, row.codes, scales, segment, out);
  } else if constexpr (Format::kLaneScales) {
    expand_row<Format, Folding::kLanes>(product, row.codes, scales, segment, out);
  }
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
