// Products of few tokens, bound by memory: every weight is read once, in order. Compiled once per SIMD level.

#pragma once

#include "linear/scales_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

constexpr int kRowsAtOnce = 4;
constexpr int kTokensAtOnce = 4;
constexpr int64_t kPrefetchBytes = 1024;

/// The scales of a step: one, or one for each slot, from float32 or, eight e4m3 codes, as they are stored.
enum class StepScales { kOne, kLanes, kFloat8Lanes };

// Where scales change from step to step, sums and totals share the registers.
template <class Format, StepScales kScales>
constexpr int kTokensOfFourRows =
    kSlotWeights<Format> == 8 || kScales != StepScales::kOne || kRegisters == 16 ? 2 : kTokensAtOnce;

/// Rows that are read side by side. They lie apart, since the hardware foresees one stream of reads in a page.
template <int kRows>
struct RowBlock {
  int64_t apart;  // of their products in the output as well
  const uint8_t* codes[kRows];
  const float* scales[kRows];           // decoded
  const uint8_t* stored_scales[kRows];  // for kFloat8Lanes
};

/// The factor of the sums of `row` over the steps that begin at `step`; `index` is that of their scale for kOne.
template <class Format, StepScales kScales, int kRows>
inline __attribute__((always_inline)) Vec factor_of(const Product& product, const RowBlock<kRows>& rows, int row,
                                                    int64_t step, int64_t index) {
  if constexpr (kScales == StepScales::kOne) return broadcast(rows.scales[row][index]);
  if constexpr (kScales == StepScales::kLanes) {
    return lane_scales<Format>(rows.scales[row] + step * (kStepWeights<Format> / product.scale_columns),
                               product.scale_columns);
  }
#if defined(__AVX512VBMI__)
  if constexpr (kScales == StepScales::kFloat8Lanes) {
    if ((step + 1) * kStepWeights<Format> <= product.columns) {
      return lane_scales_of_float8(rows.stored_scales[row] + step * 8);
    }
    uint8_t rest[8] = {};
    __builtin_memcpy(rest, rows.stored_scales[row] + step * 8, static_cast<size_t>(product.columns / 16 - step * 8));
    return lane_scales_of_float8(rest);
  }
#endif
}

template <class Format, int kVector, int kRows, int kTokens>
inline __attribute__((always_inline)) void add_vectors(const typename Format::Raw (&raw)[kRows], const float* x,
                                                       int64_t slots, Vec (&sums)[kRows][kTokens]) {
  if constexpr (kVector < Format::kVectors) {
    using Target = typename Format::Target;
    typename Target::Numbers numbers[kRows];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) numbers[r] = Format::template get<kVector>(raw[r]);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const auto inputs = Target::load(x + t * slots + kVector * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r][t] = Target::multiply_add(sums[r][t], numbers[r], inputs);
    }
    add_vectors<Format, kVector + 1>(raw, x, slots, sums);
  }
}

/// Adds the products of one step, whose codes begin at codes[row] + offset.
template <class Format, bool kPrefetches, int kRows, int kTokens>
inline __attribute__((always_inline)) void add_step(const uint8_t* const (&codes)[kRows], int64_t offset,
                                                    const float* x, int64_t slots, Vec (&sums)[kRows][kTokens]) {
  typename Format::Raw raw[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    raw[r] = Format::load(codes[r] + offset);
    if constexpr (kPrefetches) prefetch<3>(codes[r] + offset, kPrefetchBytes);
  }
  add_vectors<Format, 0>(raw, x, slots, sums);
}

/// The step at the end of rows that fills only `bytes` of it; what is missing is code 0 and meets inputs of 0.
template <class Format, int kRows, int kTokens>
inline void add_last_step(const uint8_t* const (&codes)[kRows], int64_t offset, int64_t bytes, const float* x,
                          int64_t slots, Vec (&sums)[kRows][kTokens]) {
  uint8_t padded[kRows][kVectorBytes] = {};
  const uint8_t* starts[kRows];
  for (int r = 0; r < kRows; ++r) {
    __builtin_memcpy(padded[r], codes[r] + offset, static_cast<size_t>(bytes));
    starts[r] = padded[r];
  }
  add_step<Format, false>(starts, 0, x, slots, sums);
}

/// out[t * out_stride + r * rows.apart] = x[t] . row r; token t of x begins at x + t * slots.
template <class Format, StepScales kScales, int kRows, int kTokens>
void dot_rows(const Product& product, const RowBlock<kRows>& rows, const float* x, int64_t slots, float* out,
              int64_t out_stride) {
  constexpr int64_t kStepSlots = Format::kVectors * kLanes;
  const int64_t whole_steps = product.columns / kStepWeights<Format>;
  const int64_t steps = steps_of<Format>(product);
  const int64_t last_bytes = row_bytes(product.kind, product.columns) - whole_steps * kVectorBytes;
  const int64_t shared = product.scale_columns;
  const int64_t steps_of_scale = kScales != StepScales::kOne ? 1
                                 : shared == product.columns ? steps
                                                             : shared / kStepWeights<Format>;
  Vec totals[kRows][kTokens] = {};
  for (int64_t first = 0, scale = 0; first < steps; first += steps_of_scale, ++scale) {
    Vec sums[kRows][kTokens] = {};
    const int64_t last = first + steps_of_scale;
    const int64_t last_whole = last < whole_steps ? last : whole_steps;
    for (int64_t step = first; step < last_whole; ++step) {
      add_step<Format, true>(rows.codes, step * kVectorBytes, x + step * kStepSlots, slots, sums);
    }
    if (last > whole_steps) {
      add_last_step<Format>(rows.codes, whole_steps * kVectorBytes, last_bytes, x + whole_steps * kStepSlots, slots,
                            sums);
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec factor = factor_of<Format, kScales>(product, rows, r, first, scale);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) totals[r][t] += sums[r][t] * factor;
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTokens; ++t) out[t * out_stride + r * rows.apart] = sum(totals[r][t]) * product.global_scale;
  }
}

/// Rows side by side for kTokens tokens: all, or two after two so that all sums stay in registers.
template <class Format, StepScales kScales, int kRows, int kTokens>
void dot_tokens(const Product& product, const RowBlock<kRows>& rows, const float* x, int64_t slots, float* out,
                int64_t out_stride) {
  if constexpr (kRows == 4 && kTokens > kTokensOfFourRows<Format, kScales>) {
    for (int r = 0; r < 4; r += 2) {
      const RowBlock<2> pair{rows.apart,
                             {rows.codes[r], rows.codes[r + 1]},
                             {rows.scales[r], rows.scales[r + 1]},
                             {rows.stored_scales[r], rows.stored_scales[r + 1]}};
      dot_rows<Format, kScales, 2, kTokens>(product, pair, x, slots, out + r * rows.apart, out_stride);
    }
  } else {
    dot_rows<Format, kScales, kRows, kTokens>(product, rows, x, slots, out, out_stride);
  }
}

template <class Format, StepScales kScales, int kRows>
void dot_all_tokens(const Product& product, const RowBlock<kRows>& rows, const float* x, int64_t tokens, float* out,
                    int64_t out_stride) {
  const int64_t slots = steps_of<Format>(product) * Format::kVectors * kLanes;
  // A single row is the rest of many: one token at a time is good enough for it.
  constexpr int kMost = kRows == 1 ? 1 : kTokensAtOnce;
  int64_t t = 0;
  for (; t + kMost <= tokens; t += kMost) {
    dot_tokens<Format, kScales, kRows, kMost>(product, rows, x + t * slots, slots, out + t * out_stride, out_stride);
  }
  if constexpr (kMost > 1) {
    if (t + 2 <= tokens) {
      dot_tokens<Format, kScales, kRows, 2>(product, rows, x + t * slots, slots, out + t * out_stride, out_stride);
      t += 2;
    }
  }
  if (t < tokens) {
    dot_tokens<Format, kScales, kRows, 1>(product, rows, x + t * slots, slots, out + t * out_stride, out_stride);
  }
}

template <class Format, StepScales kScales, int kRows>
void dot_block(const Product& product, const Row* rows, int64_t apart, const float* x, int64_t tokens, float* scratch,
               float* out, int64_t out_stride) {
  RowBlock<kRows> block;
  block.apart = apart;
  for (int r = 0; r < kRows; ++r) {
    const Row& row = rows[r * apart];
    float* scales = scratch + r * scale_floats(product);
    if constexpr (kScales != StepScales::kFloat8Lanes) {
      decode_scales(row, product.columns / product.scale_columns, scales);
    }
    block.codes[r] = row.codes;
    block.scales[r] = scales;
    block.stored_scales[r] = static_cast<const uint8_t*>(row.scales);
  }
  dot_all_tokens<Format, kScales, kRows>(product, block, x, tokens, out, out_stride);
}

template <class Format, StepScales kScales>
void dot_blocks(const Product& product, const Row* rows, int64_t count, const float* x, int64_t tokens, float* scratch,
                float* out, int64_t out_stride) {
  const int64_t apart = count / kRowsAtOnce;
  for (int64_t r = 0; r < apart; ++r) {
    dot_block<Format, kScales, kRowsAtOnce>(product, rows + r, apart, x, tokens, scratch, out + r, out_stride);
  }
  for (int64_t r = apart * kRowsAtOnce; r < count; ++r) {
    dot_block<Format, kScales, 1>(product, rows + r, 1, x, tokens, scratch, out + r, out_stride);
  }
}

/// Rows whose scales fit no vector: as float32 numbers, one at a time.
void dot_numbers(const Product& product, const Row* rows, int64_t count, const float* x, int64_t tokens, float* scratch,
                 float* out, int64_t out_stride) {
  const Product numbers = of_numbers(product);
  for (int64_t r = 0; r < count; ++r) {
    expand_numbers(product, rows[r], 0, product.columns, scratch);
    const Row row{reinterpret_cast<const uint8_t*>(scratch), nullptr, ScaleType::kNone, product.columns};
    dot_block<Float32Weights, StepScales::kOne, 1>(numbers, &row, 1, x, tokens, scratch + product.columns, out + r,
                                                   out_stride);
  }
}

int64_t few_scratch(const Product& product) {
  const int64_t scales = product.scale_columns > 0 ? scale_floats(product) : 0;
  const int64_t numbers = product.columns + 1 + kLanes;
  return kRowsAtOnce * scales > numbers ? kRowsAtOnce * scales : numbers;
}

void few(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens, float* scratch,
         float* out, int64_t out_stride) {
  with_format(product, [&](auto format, ScaleUse use) {
    using Format = decltype(format);
    const auto run = [&](auto blocks) { blocks(product, rows, count, packed, tokens, scratch, out, out_stride); };
    if constexpr (Format::kLaneScales) {
#if defined(__AVX512VBMI__)
      if (use == ScaleUse::kLanes && product.kind == WeightKind::kNvfp4 && product.scale_columns == 16) {
        return run(dot_blocks<Format, StepScales::kFloat8Lanes>);
      }
#endif
      if (use == ScaleUse::kLanes) return run(dot_blocks<Format, StepScales::kLanes>);
    }
    run(use == ScaleUse::kNumbers ? dot_numbers : dot_blocks<Format, StepScales::kOne>);
  });
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
