// Products of many tokens, bound by arithmetic: weights become a panel in the cache. Compiled once per SIMD level.

#pragma once

#include "cpu/matmul.h"
#include "linear/block_rounding_simd.h"
#include "linear/scales_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

// Two vectors of weight rows times so many tokens are sums in registers, with operands in the rest.
constexpr int kTileTokens = kRegisters == 32 ? 12 : 6;
constexpr int64_t kPanelRows = 2 * kLanes;
constexpr int64_t kSegmentSlots = 512;  // of a panel: 64 KiB with vectors of 64 bytes
// Rows of the buffer before it is transposed must not meet in one set of the cache.
constexpr int64_t kBufferStride = kSegmentSlots + 16;

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

using Bits = uint32_t __attribute__((vector_size(kVectorBytes)));

/// The inputs of one step of one token, rounded as the product asks; 0, which `out` comes with, beyond the columns.
template <int kCount>
inline void step_inputs(const Product& product, const float* x, int64_t first, float (&out)[kCount]) {
  if (product.kind == WeightKind::kMxfp8) return round_blocks(x, first, product.columns, out);
  const int64_t rest = product.columns - first;
  const int64_t count = rest < kCount ? rest : kCount;
  __builtin_memcpy(out, x + first, static_cast<size_t>(count) * sizeof(float));
  if (!product.round_inputs) return;
  for (int i = 0; i < kCount; i += kLanes) {
    const Vec value = load(out + i);
    const auto bits = __builtin_bit_cast(Bits, value);
    const Bits rounded = bits + 0x7FFFU + (bits >> 16 & 1U);
    const Bits kept = value != value ? bits | 0x00400000U : rounded;  // NaN stays NaN
    store(out + i, __builtin_bit_cast(Vec, kept & 0xFFFF0000U));
  }
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

/// sums[token][row] of one tile of tokens and one panel.
template <class Target, int kTokens>
inline __attribute__((always_inline)) void multiply_tile(const float* panel, const float* tile, int64_t slots,
                                                         Vec (&sums)[kTokens][2]) {
  for (int64_t slot = 0; slot < slots; ++slot) {
    const auto first = Target::load(panel + slot * kPanelRows);
    const auto second = Target::load(panel + slot * kPanelRows + kLanes);
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t) {
      const auto x = Target::broadcast(tile + slot * kTileTokens + t);
      sums[t][0] = Target::multiply_add(sums[t][0], first, x);
      sums[t][1] = Target::multiply_add(sums[t][1], second, x);
    }
  }
}

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
/// The same of pairs that lie two slots together: a matrix of two tokens times one of two rows, four numbers deep.
template <class Target, int kTokens>
  requires(Target::kSlotsTogether == 2)
inline __attribute__((always_inline)) void multiply_tile(const float* panel, const float* tile, int64_t slots,
                                                         Vec (&sums)[kTokens][2]) {
  const auto matrix = [](const float* from) { return __builtin_bit_cast(bfloat16x8_t, load_int(from)); };
  Vec squares[kTokens / 2][kLanes] = {};
  for (int64_t slot = 0; slot < slots; slot += 2) {
    bfloat16x8_t rows[kLanes];
#pragma GCC unroll 4
    for (int r = 0; r < kLanes; ++r) rows[r] = matrix(panel + slot * kPanelRows + r * kLanes);
#pragma GCC unroll 6
    for (int t = 0; t < kTokens / 2; ++t) {
      const bfloat16x8_t tokens = matrix(tile + slot * kTileTokens + t * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kLanes; ++r) squares[t][r] = vbfmmlaq_f32(squares[t][r], tokens, rows[r]);
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < kTokens / 2; ++t) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Vec a = squares[t][2 * half], b = squares[t][2 * half + 1];
      sums[2 * t][half] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
      sums[2 * t + 1][half] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    }
  }
}
#endif

/// out[token * stride + row] = or += sums * factors[row].
template <class Target, int kTokens>
void add_tile(const float* panel, const float* tile, int64_t slots, const float* factors, bool add, float* out,
              int64_t stride) {
  Vec sums[kTokens][2] = {};
  multiply_tile<Target, kTokens>(panel, tile, slots, sums);
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const Vec factor = load(factors + half * kLanes);
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t) {
      float* at = out + t * stride + half * kLanes;
      const Vec before = add ? load(at) : Vec{};
      store(at, before + sums[t][half] * factor);
    }
  }
}

template <class Target>
void add_tokens(int64_t tokens, const float* panel, const float* tile, int64_t slots, const float* factors, bool add,
                float* out, int64_t stride) {
  constexpr int kHalf = kTileTokens / 2;
  if (tokens > kHalf) {
    add_tile<Target, kTileTokens>(panel, tile, slots, factors, add, out, stride);
  } else {
    add_tile<Target, kHalf>(panel, tile, slots, factors, add, out, stride);
  }
}

/// The scratch of `many`, in the order in which `many_scratch` counts it.
struct ManyScratch {
  ManyScratch(float* memory, int64_t rows)
      : buffer(memory),
        panels(buffer + kLanes * kBufferStride),
        factors(panels + rows * kSegmentSlots),
        scales(factors + rows) {}

  float* buffer;   // [kLanes, kBufferStride]
  float* panels;   // [rows / kPanelRows, kSegmentSlots, kPanelRows]
  float* factors;  // [rows], of the sums of a segment
  float* scales;   // [rows, scale_floats]
};

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

#if defined(__AVX512F__)
/// One stage of a transposition: exchanges the blocks of kBlock lanes that lie off the diagonal.
template <int kBlock>
inline __attribute__((always_inline)) void exchange_blocks(Vec (&rows)[kLanes]) {
  const IntVec lanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const IntVec is_odd = (lanes & kBlock) != 0;
  const auto upper = __builtin_bit_cast(__m512i, is_odd ? lanes + (kLanes - kBlock) : lanes);
  const auto lower = __builtin_bit_cast(__m512i, is_odd ? lanes + kLanes : lanes + kBlock);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kBlock) != 0) continue;
    const Vec a = rows[i], b = rows[i + kBlock];
    rows[i] = _mm512_permutex2var_ps(a, upper, b);
    rows[i + kBlock] = _mm512_permutex2var_ps(a, lower, b);
  }
}

/// panel[slot * kPanelRows + row] = buffer[row * kBufferStride + slot] for kLanes rows.
void transpose_rows(const float* buffer, int64_t slots, float* panel) {
  for (int64_t slot = 0; slot < slots; slot += kLanes) {
    Vec rows[kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) rows[r] = load(buffer + r * kBufferStride + slot);
    exchange_blocks<8>(rows);
    exchange_blocks<4>(rows);
    exchange_blocks<2>(rows);
    exchange_blocks<1>(rows);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) store(panel + (slot + r) * kPanelRows, rows[r]);
  }
}
#else
/// panel[slot * kPanelRows + row] = buffer[row * kBufferStride + slot] for kLanes rows.
void transpose_rows(const float* buffer, int64_t slots, float* panel) {
  cpu::SALA_SIMD_LEVEL::transpose(buffer, kBufferStride, kLanes, slots, panel, kPanelRows);
}
#endif

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
/// The same with two slots of a row together, then two of the next.
void transpose_pairs(const float* buffer, int64_t slots, float* panel) {
  for (int64_t slot = 0; slot < slots; slot += kLanes) {
#pragma GCC unroll 2
    for (int r = 0; r < kLanes; r += 2) {
      const Vec a = load(buffer + r * kBufferStride + slot), b = load(buffer + (r + 1) * kBufferStride + slot);
      store(panel + slot * kPanelRows + r * 2, __builtin_shufflevector(a, b, 0, 1, 4, 5));
      store(panel + (slot + 2) * kPanelRows + r * 2, __builtin_shufflevector(a, b, 2, 3, 6, 7));
    }
  }
}
#endif

/// Expands kLanes rows and writes them as columns of a panel.
template <class Format>
void fill_half_panel(const Product& product, const Course& course, const Row* rows, const float* scales,
                     Segment segment, float* buffer, float* panel) {
  constexpr int64_t kStepSlots = Format::kVectors * kLanes;
  const int64_t slots = (segment.last - segment.first) * kStepSlots;
  for (int64_t r = 0; r < kLanes; ++r) {
    float* out = buffer + r * kBufferStride;
    if (course.use == ScaleUse::kNumbers) {
      const int64_t first = segment.first * kStepSlots;
      const int64_t last = product.columns < first + slots ? product.columns : first + slots;
      expand_numbers(product, rows[r], first, last, out);
      for (int64_t i = last - first; i < slots; ++i) out[i] = 0.0f;
      continue;
    }
    const float* scales_of_row = scales + r * scale_floats(product);
    if (course.folding == Folding::kNone) {
      expand_row<Format, Folding::kNone>(product, rows[r].codes, scales_of_row, segment, out);
    } else if (course.folding == Folding::kWholeSteps) {
      expand_row<Format, Folding::kWholeSteps>(product, rows[r].codes, scales_of_row, segment, out);
    } else if constexpr (Format::kLaneScales) {
      expand_row<Format, Folding::kLanes>(product, rows[r].codes, scales_of_row, segment, out);
    }
  }
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  if constexpr (Format::Target::kSlotsTogether == 2) return transpose_pairs(buffer, slots, panel);
#endif
  transpose_rows(buffer, slots, panel);
}

/// All tokens of one segment of steps.
template <class Format>
void add_segment(const Product& product, const Course& course, const Row* rows, int64_t count, Segment segment,
                 const float* packed, int64_t tokens, const ManyScratch& scratch, float* out) {
  constexpr int64_t kStepSlots = Format::kVectors * kLanes;
  const int64_t slots = (segment.last - segment.first) * kStepSlots;
  const int64_t all_slots = steps_of<Format>(product) * kStepSlots;
  for (int64_t r = 0; r < count; r += kLanes) {
    float* panel =
        scratch.panels + r / kPanelRows * kPanelRows * kSegmentSlots + r % kPanelRows * Format::Target::kSlotsTogether;
    const float* scales = course.use == ScaleUse::kNumbers ? nullptr : scratch.scales + r * scale_floats(product);
    fill_half_panel<Format>(product, course, rows + r, scales, segment, scratch.buffer, panel);
  }
  for (int64_t r = 0; r < count; ++r) {
    const bool has_factor = course.use == ScaleUse::kSums && course.folding == Folding::kNone;
    const int64_t index = segment.first / course.steps_of_factor;
    scratch.factors[r] = product.global_scale * (has_factor ? scratch.scales[r * scale_floats(product) + index] : 1.0f);
  }
  for (int64_t t = 0; t < tokens; t += kTileTokens) {
    const float* tile = packed + t * all_slots + segment.first * kStepSlots * kTileTokens;
    for (int64_t r = 0; r < count; r += kPanelRows) {
      add_tokens<typename Format::Target>(tokens - t, scratch.panels + r * kSegmentSlots, tile, slots,
                                          scratch.factors + r, segment.first > 0, out + t * count + r, count);
    }
  }
}

template <class Format>
void many_as(const Product& product, ScaleUse use, const Row* rows, int64_t count, const float* packed, int64_t tokens,
             float* memory, float* out) {
  constexpr int64_t kMostSteps = kSegmentSlots / (Format::kVectors * kLanes);
  const ManyScratch scratch(memory, count);
  const Course course = course_of<Format>(product, use);
  for (int64_t r = 0; r < count && use != ScaleUse::kNumbers; ++r) {
    decode_scales(rows[r], product.columns / product.scale_columns, scratch.scales + r * scale_floats(product));
  }
  const int64_t steps = steps_of<Format>(product);
  for (Segment segment{0, 0}; segment.last < steps;) {
    segment.first = segment.last;
    const int64_t end = (segment.first / course.steps_of_factor + 1) * course.steps_of_factor;
    segment.last = end < segment.first + kMostSteps ? end : segment.first + kMostSteps;
    add_segment<Format>(product, course, rows, count, segment, packed, tokens, scratch, out);
  }
}

int64_t many_scratch(const Product& product, int64_t rows) {
  const int64_t scales = product.scale_columns > 0 ? scale_floats(product) : 0;
  return kLanes * kBufferStride + rows * (kSegmentSlots + 1 + scales);
}

void many(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens, float* scratch,
          float* out) {
  with_format(product, [&](auto format, ScaleUse use) {
    many_as<decltype(format)>(product, use, rows, count, packed, tokens, scratch, out);
  });
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
