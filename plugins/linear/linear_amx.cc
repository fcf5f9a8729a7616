// Products of many tokens on the tiles of AMX, for weights and inputs that bfloat16 holds. Compiled for the level amx.
//
// Sums are those of y^T = W x^T: rows of weights lie in tiles as they are stored, and only inputs, which are packed
// once for all rows, and sums, once for all columns, are transposed.

#include "cpu/tiles.h"
#include "linear/expansion_simd.h"
#include "linear/packing_simd.h"
#include "linear/transpose_simd.h"

namespace sala::linear::amx {
namespace {

constexpr int64_t kTileTokens = cpu::amx::kRegisterRows;
constexpr int64_t kTileFloats = kLanes * kTileTokens;
constexpr int64_t kPanelRows = 2 * cpu::amx::kRegisterRows;
// With 512 slots of inputs for them, the sums of so many rows and tokens take two thirds of 2 MiB of cache.
constexpr int64_t kMostRows = 256;
constexpr int64_t kMostTokens = 512;
constexpr int64_t kFewTokens = 6;
constexpr int64_t kSegmentSlots = 256;
// Rows of a tile must not meet in one set of the cache.
constexpr int64_t kPanelStride = kSegmentSlots + 16;

/// The word of a step that every half of a slot is.
template <class Format>
struct Words {
  uint16_t index[Format::kVectors][2 * kLanes];
};

template <class Format>
constexpr Words<Format> words_of() {
  Words<Format> words{};
  for (int vector = 0; vector < Format::kVectors; ++vector) {
    for (int i = 0; i < 2 * kLanes; ++i) {
      words.index[vector][i] = static_cast<uint16_t>(Format::order(vector, i / 2, i % 2));
    }
  }
  return words;
}

/// The high halves of 32 floats: the numbers of bfloat16 that they are rounded to.
inline __m512i high_halves(const float* numbers) {
  alignas(64) static constexpr uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                    33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(_mm512_loadu_si512(numbers), _mm512_load_si512(kOdd),
                                   _mm512_loadu_si512(numbers + kLanes));
}

/// Slots of a step in the order of its format, from the inputs as they are.
template <class Format>
inline void order_words(const float* numbers, Vec (&slots)[Format::kVectors]) {
  static constexpr Words<Format> kWords = words_of<Format>();
  __m512i in_order[Format::kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < Format::kVectors; ++i) in_order[i] = high_halves(numbers + i * 2 * kLanes);
#pragma GCC unroll 4
  for (int vector = 0; vector < Format::kVectors; ++vector) {
    const __m512i index = _mm512_loadu_si512(kWords.index[vector]);
    __m512i words = in_order[0];
    if constexpr (Format::kVectors > 1) words = _mm512_permutex2var_epi16(in_order[0], index, in_order[1]);
    if constexpr (Format::kVectors > 2) {
      const __m512i rest = _mm512_permutex2var_epi16(in_order[2], index, in_order[3]);
      words = _mm512_mask_mov_epi16(words, _mm512_test_epi16_mask(index, _mm512_set1_epi16(64)), rest);
    }
    slots[vector] = as_float(__builtin_bit_cast(IntVec, words));
  }
}

template <class Format>
void pack_tile(const Product& product, const Inputs& inputs, float* tile) {
  constexpr int kStepSlots = Format::kVectors * kLanes;
  for (int64_t slot = inputs.first_slot; slot < inputs.last_slot; slot += kStepSlots) {
    Vec rows[Format::kVectors][kLanes] = {};
    for (int64_t t = 0; t < inputs.tokens; ++t) {
      float numbers[kStepWeights<Format>] = {};
      step_inputs(product, inputs.x + t * product.columns, slot / kStepSlots * kStepWeights<Format>, numbers);
      Vec slots[Format::kVectors];
      order_words<Format>(numbers, slots);
      for (int vector = 0; vector < Format::kVectors; ++vector) rows[vector][t] = slots[vector];
    }
    for (int vector = 0; vector < Format::kVectors; ++vector) {
      transpose_lanes(rows[vector]);
      float* out = tile + (slot + vector * kLanes) * kTileTokens;
      for (int i = 0; i < kLanes; ++i) store(out + i * kTileTokens, rows[vector][i]);
    }
  }
}

int64_t tiles_of(int64_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

/// The scratch of an item, in the order in which `scratch_floats` counts it.
struct Scratch {
  Scratch(float* memory, int64_t rows, int64_t tokens)
      : panel(memory),
        sums(panel + rows * kPanelStride),
        part(sums + tiles_of(tokens) * rows * kTileTokens),
        factors(part + 2 * kPanelRows * kTileTokens),
        scales(factors + rows) {}

  float* panel;    // [rows, kPanelStride]: a segment of the weights
  float* sums;     // [tiles of tokens, rows, kTileTokens]
  float* part;     // [2, kPanelRows, kTileTokens]: sums that share factors
  float* factors;  // [rows]
  float* scales;   // [rows, scale_floats]
};

/// Rows of a panel and tiles of inputs whose products are summed in the registers.
struct Block {
  const float* weights;
  const float* inputs;
  int64_t input_stride;  // floats from tile to tile
  float* sums;
  int64_t sum_stride;  // floats from tile to tile
};

/// Sums are in register `row tile + 2 * token tile`.
template <int kTiles, class Body>
inline __attribute__((always_inline)) void for_each_sum(float* sums, int64_t stride, Body&& body) {
  body.template operator()<0>(sums);
  body.template operator()<1>(sums + kTileFloats);
  if constexpr (kTiles == 2) {
    body.template operator()<2>(sums + stride);
    body.template operator()<3>(sums + stride + kTileFloats);
  }
}

template <int kTiles>
inline __attribute__((always_inline)) void add_products(const Block& block, int64_t first_slot, int64_t last_slot) {
  using namespace cpu::amx;
  constexpr int64_t kStride = kPanelStride * 4;
  for (int64_t slot = first_slot; slot < last_slot; slot += kLanes) {
    load_tile<4>(block.weights + slot, kStride);
    load_tile<6>(block.inputs + slot * kTileTokens, kRegisterRowBytes);
    add_bfloat16_products<0, 4, 6>();
    load_tile<5>(block.weights + kLanes * kPanelStride + slot, kStride);
    add_bfloat16_products<1, 5, 6>();
    if constexpr (kTiles == 2) {
      load_tile<7>(block.inputs + block.input_stride + slot * kTileTokens, kRegisterRowBytes);
      add_bfloat16_products<2, 4, 7>();
      add_bfloat16_products<3, 5, 7>();
    }
  }
}

/// sums = or += the products of a segment.
template <int kTiles>
void add_block(const Block& block, int64_t slots, bool add) {
  using namespace cpu::amx;
  for_each_sum<kTiles>(block.sums, block.sum_stride, [&]<int kTile>(float* at) {
    if (add) {
      load_tile<kTile>(at, kRegisterRowBytes);
    } else {
      zero_tile<kTile>();
    }
  });
  add_products<kTiles>(block, 0, slots);
  for_each_sum<kTiles>(block.sums, block.sum_stride,
                       [&]<int kTile>(float* at) { store_tile<kTile>(at, kRegisterRowBytes); });
}

/// sums = or += factors[row] * the products of a segment.
template <int kTiles>
void add_scaled_block(const Block& block, int64_t slots, bool add, const float* factors, float* part) {
  using namespace cpu::amx;
  const auto zero = []<int kTile>(float*) { zero_tile<kTile>(); };
  const auto store_part = []<int kTile>(float* at) { store_tile<kTile>(at, kRegisterRowBytes); };
  for_each_sum<kTiles>(part, 2 * kTileFloats, zero);
  add_products<kTiles>(block, 0, slots);
  for_each_sum<kTiles>(part, 2 * kTileFloats, store_part);
  for (int tile = 0; tile < kTiles; ++tile) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      float* at = block.sums + tile * block.sum_stride + r * kTileTokens;
      const Vec before = add ? load(at) : Vec{};
      store(at, before + load(part + (tile * kPanelRows + r) * kTileTokens) * factors[r]);
    }
  }
}

/// What is multiplied with the panel that a segment of the weights has become.
struct Multiplication {
  const float* inputs;  // of the segment, in the first tile
  int64_t input_stride;
  int64_t rows;
  int64_t tokens;
  int64_t slots;
  bool add;
  bool is_scaled;
};

void multiply(const Multiplication& m, const Scratch& scratch) {
  const int64_t sum_stride = m.rows * kTileTokens;
  for (int64_t tile = 0; tile < tiles_of(m.tokens); tile += 2) {
    const bool has_two = tile + 1 < tiles_of(m.tokens);
    for (int64_t r = 0; r < m.rows; r += kPanelRows) {
      const Block block{scratch.panel + r * kPanelStride, m.inputs + tile * m.input_stride, m.input_stride,
                        scratch.sums + tile * sum_stride + r * kTileTokens, sum_stride};
      if (m.is_scaled) {
        const auto run = has_two ? add_scaled_block<2> : add_scaled_block<1>;
        run(block, m.slots, m.add, scratch.factors + r, scratch.part);
      } else {
        const auto run = has_two ? add_block<2> : add_block<1>;
        run(block, m.slots, m.add);
      }
    }
  }
}

template <class Format>
void multiply_all(const Product& product, const Course& course, const Row* rows, int64_t count, const float* packed,
                  int64_t tokens, const Scratch& scratch) {
  constexpr int64_t kStepSlots = Format::kVectors * kLanes;
  constexpr int64_t kMostSteps = kSegmentSlots / kStepSlots;
  const int64_t steps = steps_of<Format>(product);
  const int64_t scales = scale_floats(product);
  const bool is_scaled = course.steps_of_factor < steps;
  for (Segment segment{0, 0}; segment.last < steps;) {
    segment.first = segment.last;
    const int64_t factor = segment.first / course.steps_of_factor;
    const int64_t end = (factor + 1) * course.steps_of_factor;
    segment.last = end < segment.first + kMostSteps ? end : segment.first + kMostSteps;
    segment.last = segment.last < steps ? segment.last : steps;
    for (int64_t r = 0; r < count; ++r) {
      expand_segment<Format>(product, course, rows[r], scratch.scales + r * scales, segment,
                             scratch.panel + r * kPanelStride);
      if (is_scaled) scratch.factors[r] = scratch.scales[r * scales + factor];
    }
    multiply({packed + segment.first * kStepSlots * kTileTokens, steps * kStepSlots * kTileTokens, count, tokens,
              (segment.last - segment.first) * kStepSlots, segment.first > 0, is_scaled},
             scratch);
  }
}

/// Writes `tokens` tokens and `columns` columns of a tile of sums; those of v are `gate` floats behind.
void write_tile(const float* sums, const float* factors, const Output& out, int64_t gate_rows, int64_t tokens,
                int64_t columns, float* y) {
  Vec rows[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    rows[r] = load(sums + r * kTileTokens) * factors[r];
    if (out.silu_mul) {
      const int64_t gate = gate_rows + r;
      rows[r] = rows[r] * sigmoid(rows[r]) * (load(sums + gate * kTileTokens) * factors[gate]);
    }
  }
  transpose_lanes(rows);
  const auto mask = static_cast<__mmask16>(columns >= kLanes ? 0xFFFF : (1 << columns) - 1);
#pragma GCC unroll 16
  for (int t = 0; t < kLanes; ++t) {
    if (t < tokens) _mm512_mask_storeu_ps(y + t * out.stride, mask, rows[t]);
  }
}

void write(const Scratch& scratch, int64_t rows, int64_t tokens, const Output& out) {
  for (int64_t t = 0; t < tokens; t += kTileTokens) {
    for (int64_t r = 0; r < out.columns; r += kLanes) {
      write_tile(scratch.sums + t * rows + r * kTileTokens, scratch.factors + r, out, rows / 2, tokens - t,
                 out.columns - r, out.y + t * out.stride + r);
    }
  }
}

template <class Format>
void products_as(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens,
                 float* memory, const Output& out) {
  const cpu::amx::Tiles tiles;
  const Scratch scratch(memory, count, tokens);
  const Course course = course_of<Format>(product, scale_use<Format>(product));
  const int64_t scales = scale_floats(product);
  for (int64_t r = 0; r < count; ++r) {
    decode_scales(rows[r], product.columns / product.scale_columns, scratch.scales + r * scales);
  }
  multiply_all<Format>(product, course, rows, count, packed, tokens, scratch);
  const bool share_one = course.use == ScaleUse::kSums && course.steps_of_factor == steps_of<Format>(product);
  for (int64_t r = 0; r < count; ++r) {
    scratch.factors[r] = product.global_scale * (share_one ? scratch.scales[r * scales] : 1.0f);
  }
  write(scratch, count, tokens, out);
}

Layout layout(const Product& product) {
  return {slots_of(product), kTileTokens, kPanelRows, kMostRows, kMostTokens, kFewTokens};
}

void pack(const Product& product, const Inputs& inputs, int64_t, float* tile) {
  with_pairs(product, [&](auto format) { pack_tile<decltype(format)>(product, inputs, tile); });
}

int64_t scratch_floats(const Product& product, int64_t rows, int64_t tokens) {
  return rows * (kPanelStride + tiles_of(tokens) * kTileTokens + 1 + scale_floats(product)) +
         2 * kPanelRows * kTileTokens;
}

void products(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens,
              float* scratch, const Output& out) {
  with_pairs(product,
             [&](auto format) { products_as<decltype(format)>(product, rows, count, packed, tokens, scratch, out); });
}

}  // namespace

bool takes(const Product& product) {
  if (!product.round_inputs) return false;
  return with_pairs(product, [&](auto format) { return scale_use<decltype(format)>(product) != ScaleUse::kNumbers; });
}

extern const ManyKernels kManyKernels{layout, pack, scratch_floats, products};

}  // namespace sala::linear::amx
