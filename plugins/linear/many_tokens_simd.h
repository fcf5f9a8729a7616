// Products of many tokens, bound by arithmetic: weights become a panel in the cache. Compiled once per SIMD level.

#pragma once

#include "cpu/matmul.h"
#include "linear/expansion_simd.h"
#include "linear/transpose_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

// Two vectors of weight rows times so many tokens are sums in registers, with operands in the rest.
constexpr int kTileTokens = kRegisters == 32 ? 12 : 6;
constexpr int64_t kPanelRows = 2 * kLanes;
constexpr int64_t kMostRows = 128;
constexpr int64_t kMostTokens = 504;  // whose sums for kMostRows stay in the cache; whole tiles
constexpr int64_t kFewTokens = 32;
constexpr int64_t kSegmentSlots = 512;  // of a panel: 64 KiB with vectors of 64 bytes
// Rows of the buffer before it is transposed must not meet in one set of the cache.
constexpr int64_t kBufferStride = kSegmentSlots + 16;

int64_t whole_tiles(int64_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens * kTileTokens; }

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
  order_squares<Vec, kTokens>(squares, sums);
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
  ManyScratch(float* memory, int64_t rows, int64_t tokens)
      : buffer(memory),
        panels(buffer + kLanes * kBufferStride),
        products(panels + rows * kSegmentSlots),
        factors(products + whole_tiles(tokens) * rows),
        scales(factors + rows) {}

  float* buffer;    // [kLanes, kBufferStride]
  float* panels;    // [rows / kPanelRows, kSegmentSlots, kPanelRows]
  float* products;  // [whole tiles of tokens, rows]
  float* factors;   // [rows], of the sums of a segment
  float* scales;    // [rows, scale_floats]
};

#if defined(__AVX512F__)
/// panel[slot * kPanelRows + row] = buffer[row * kBufferStride + slot] for kLanes rows.
void transpose_rows(const float* buffer, int64_t slots, float* panel) {
  for (int64_t slot = 0; slot < slots; slot += kLanes) {
    Vec rows[kLanes];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) rows[r] = load(buffer + r * kBufferStride + slot);
    transpose_lanes(rows);
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
  const int64_t slots = (segment.last - segment.first) * Format::kVectors * kLanes;
  for (int64_t r = 0; r < kLanes; ++r) {
    const float* scales_of_row = course.use == ScaleUse::kNumbers ? nullptr : scales + r * scale_floats(product);
    expand_segment<Format>(product, course, rows[r], scales_of_row, segment, buffer + r * kBufferStride);
  }
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  if constexpr (Format::Target::kSlotsTogether == 2) return transpose_pairs(buffer, slots, panel);
#endif
  transpose_rows(buffer, slots, panel);
}

/// All tokens of one segment of steps.
template <class Format>
void add_segment(const Product& product, const Course& course, const Row* rows, int64_t count, Segment segment,
                 const float* packed, int64_t tokens, const ManyScratch& scratch) {
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
                                          scratch.factors + r, segment.first > 0, scratch.products + t * count + r,
                                          count);
    }
  }
}

void silu_mul(const float* u, const float* v, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, load(u + i) * sigmoid(load(u + i)) * load(v + i));
  for (; i < count; ++i) y[i] = u[i] * sigmoid(broadcast(u[i]))[0] * v[i];
}

void write_products(const float* products, int64_t rows, int64_t tokens, const Output& out) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* u = products + t * rows;
    float* y = out.y + t * out.stride;
    if (out.silu_mul) {
      silu_mul(u, u + rows / 2, out.columns, y);
    } else {
      __builtin_memcpy(y, u, static_cast<size_t>(out.columns) * sizeof(float));
    }
  }
}

template <class Format>
void many_as(const Product& product, ScaleUse use, const Row* rows, int64_t count, const float* packed, int64_t tokens,
             float* memory) {
  constexpr int64_t kMostSteps = kSegmentSlots / (Format::kVectors * kLanes);
  const ManyScratch scratch(memory, count, tokens);
  const Course course = course_of<Format>(product, use);
  for (int64_t r = 0; r < count && use != ScaleUse::kNumbers; ++r) {
    decode_scales(rows[r], product.columns / product.scale_columns, scratch.scales + r * scale_floats(product));
  }
  const int64_t steps = steps_of<Format>(product);
  for (Segment segment{0, 0}; segment.last < steps;) {
    segment.first = segment.last;
    const int64_t end = (segment.first / course.steps_of_factor + 1) * course.steps_of_factor;
    segment.last = end < segment.first + kMostSteps ? end : segment.first + kMostSteps;
    add_segment<Format>(product, course, rows, count, segment, packed, tokens, scratch);
  }
}

Layout layout(const Product& product) {
  return {slots_of(product), kTileTokens, kPanelRows, kMostRows, kMostTokens, kFewTokens};
}

int64_t many_scratch(const Product& product, int64_t rows, int64_t tokens) {
  const int64_t scales = product.scale_columns > 0 ? scale_floats(product) : 0;
  return kLanes * kBufferStride + rows * (kSegmentSlots + whole_tiles(tokens) + 1 + scales);
}

void many(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens, float* scratch,
          const Output& out) {
  with_format(product, [&](auto format, ScaleUse use) {
    many_as<decltype(format)>(product, use, rows, count, packed, tokens, scratch);
  });
  write_products(ManyScratch(scratch, count, tokens).products, count, tokens, out);
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
