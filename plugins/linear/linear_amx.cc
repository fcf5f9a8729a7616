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
// Of 2 MiB of cache, the sums of so many rows and tokens take 512 KiB, two segments of the rows 288 KiB, and their
// codes with the inputs that come next the same again.
constexpr int64_t kMostPanelRows = 256;
constexpr int64_t kMostRows = 1024;
constexpr int64_t kMostTokens = 512;
constexpr int64_t kFewTokens = 12;
constexpr int64_t kSegmentSlots = 128;
constexpr int64_t kMostScales = 2 * kSegmentSlots / 8;
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

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

/// Steps [first, last) of the rows of a panel.
struct Stage {
  int64_t panel;
  int64_t rows;
  int64_t first;
  int64_t last;
};

/// The weights of a stage: bfloat16 numbers of its rows, and the factors of their sums.
struct Panel {
  float* slots;    // [rows, kPanelStride]
  float* factors;  // [rows]
};

/// The scratch of an item, in the order in which `scratch_floats` counts it.
struct Scratch {
  Scratch(float* memory, int64_t rows, int64_t tokens)
      : sums(memory), part(sums + tiles_of(tokens) * rows * kTileTokens) {
    float* slots = part + 2 * kPanelRows * kTileTokens;
    for (Panel& panel : panels) {
      panel = {slots, slots + rows * kPanelStride};
      slots = panel.factors + rows;
    }
  }

  float* sums;  // [tiles of tokens, rows, kTileTokens] of a panel
  float* part;  // [2, kPanelRows, kTileTokens]: sums that share factors
  Panel panels[2];
};

/// Rows of a panel and tiles of inputs whose products are summed in the registers.
struct Block {
  const float* weights;
  const float* inputs;
  int64_t input_stride;  // floats from tile to tile
  int64_t slots;
  float* sums;
  int64_t sum_stride;  // floats from tile to tile
  bool add;            // to the sums that are there
};

/// Calls body<register>(address) for the sums of kTiles tiles of inputs.
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
inline __attribute__((always_inline)) void add_products(const Block& block) {
  using namespace cpu::amx;
  constexpr int64_t kStride = kPanelStride * 4;
  for (int64_t slot = 0; slot < block.slots; slot += kLanes) {
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

/// sums = or += products.
template <int kTiles>
void add_block(const Block& block) {
  using namespace cpu::amx;
  for_each_sum<kTiles>(block.sums, block.sum_stride, [&]<int kTile>(float* at) {
    if (block.add) {
      load_tile<kTile>(at, kRegisterRowBytes);
    } else {
      zero_tile<kTile>();
    }
  });
  add_products<kTiles>(block);
  for_each_sum<kTiles>(block.sums, block.sum_stride,
                       [&]<int kTile>(float* at) { store_tile<kTile>(at, kRegisterRowBytes); });
}

/// sums = or += factors[row] * products.
template <int kTiles>
void add_scaled_block(const Block& block, const float* factors, float* part) {
  using namespace cpu::amx;
  for_each_sum<kTiles>(part, 2 * kTileFloats, []<int kTile>(float*) { zero_tile<kTile>(); });
  add_products<kTiles>(block);
  for_each_sum<kTiles>(part, 2 * kTileFloats, []<int kTile>(float* at) { store_tile<kTile>(at, kRegisterRowBytes); });
  for (int tile = 0; tile < kTiles; ++tile) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      float* at = block.sums + tile * block.sum_stride + r * kTileTokens;
      const Vec before = block.add ? load(at) : Vec{};
      store(at, before + load(part + (tile * kPanelRows + r) * kTileTokens) * factors[r]);
    }
  }
}

/// Writes `tokens` tokens and `columns` columns of a tile of sums, times the factors of their rows if there are any.
/// With silu_mul they are those of u, and those of v are `gate` rows behind.
void write_tile(const float* sums, const float* factors, int64_t gate, int64_t tokens, int64_t columns, float* y,
                int64_t stride) {
  Vec rows[kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    rows[r] = load(sums + r * kTileTokens);
    if (factors != nullptr) rows[r] *= factors[r];
    if (gate == 0) continue;
    Vec v = load(sums + (gate + r) * kTileTokens);
    if (factors != nullptr) v *= factors[gate + r];
    rows[r] = rows[r] * sigmoid(rows[r]) * v;
  }
  transpose_lanes(rows);
  const auto mask = static_cast<__mmask16>(columns >= kLanes ? 0xFFFF : (1 << columns) - 1);
#pragma GCC unroll 16
  for (int t = 0; t < kLanes; ++t) {
    if (t < tokens) _mm512_mask_storeu_ps(y + t * stride, mask, rows[t]);
  }
}

/// An item: all products of some rows. While blocks of a stage are multiplied, the rows of the next stage are expanded,
/// some with every block, and those behind are fetched: so the unit of the tiles never waits for other work.
template <class Format>
class Item {
 public:
  Item(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens, float* memory,
       const Output& out)
      : product_(product),
        rows_(rows),
        count_(count),
        packed_(packed),
        tokens_(tokens),
        out_(out),
        scratch_(memory, min(count, kMostPanelRows), tokens) {}

  void run() {
    Stage stage = stage_at(0, 0);
    for (int64_t r = 0; r < stage.rows; ++r) expand(stage, r, scratch_.panels[0]);
    for (int64_t i = 0; stage.rows > 0; ++i) {
      const Stage next = behind(stage);
      multiply(stage, next, scratch_.panels[i % 2], scratch_.panels[(i + 1) % 2]);
      stage = next;
    }
  }

 private:
  static constexpr int64_t kStepSlots = Format::kVectors * kLanes;
  static constexpr int64_t kMostSteps = kSegmentSlots / kStepSlots;

  /// The stage of a panel that begins at a step. It has no rows behind the last panel.
  Stage stage_at(int64_t panel, int64_t first) const {
    const int64_t rows = min(kMostPanelRows, count_ - panel * kMostPanelRows);
    const int64_t end = (first / course_.steps_of_factor + 1) * course_.steps_of_factor;
    return {panel, rows > 0 ? rows : 0, first, min(min(end, first + kMostSteps), steps_)};
  }

  Stage behind(const Stage& stage) const {
    return stage.last < steps_ ? stage_at(stage.panel, stage.last) : stage_at(stage.panel + 1, 0);
  }

  /// Rows of a panel are those of u and then those of v with silu_mul.
  const Row& row_at(const Stage& stage, int64_t r) const {
    if (!out_.silu_mul) return rows_[stage.panel * kMostPanelRows + r];
    const int64_t first = stage.panel * kMostPanelRows / 2, half = stage.rows / 2;
    return r < half ? rows_[first + r] : rows_[count_ / 2 + first + r - half];
  }

  /// Numbers of a row as they are multiplied, and the factor of the sums.
  void expand(const Stage& stage, int64_t r, const Panel& panel) const {
    const Row& row = row_at(stage, r);
    float* out = panel.slots + r * kPanelStride;
    if constexpr (Format::kLaneScales) {
      if (course_.use == ScaleUse::kLanes) {
        panel.factors[r] = product_.global_scale;
        return expand_scaled(row, stage, out);
      }
    }
    const float scale = scale_at(row.scale_type, row.scales, is_scaled_ ? stage.first / course_.steps_of_factor : 0);
    panel.factors[r] = scale * product_.global_scale;
    for_each_step(row, stage, out,
                  [](int64_t, auto raw, float* at) { store_vectors<Format, 0>(raw, false, Vec{}, at); });
  }

  /// The same with the scales of slots multiplied into the numbers.
  void expand_scaled(const Row& row, const Stage& stage, float* out) const {
    const int64_t of_step = kStepWeights<Format> / product_.scale_columns;
    const int64_t first = stage.first * of_step, last = product_.columns / product_.scale_columns;
    float scales[kMostScales + kLanes];
    const Row part{row.codes, static_cast<const uint8_t*>(row.scales) + first * scale_bytes(row.scale_type),
                   row.scale_type, row.scale_columns};
    decode_scales(part, min(stage.last * of_step, last) - first, scales);
    for_each_step(row, stage, out, [&](int64_t step, auto raw, float* at) {
      store_vectors<Format, 0>(raw, true, lane_scales<Format>(scales + step * of_step, product_.scale_columns), at);
    });
  }

  /// Calls body(step of the stage, codes, place of the slots); the codes behind a row are zeros.
  template <class Body>
  inline __attribute__((always_inline)) void for_each_step(const Row& row, const Stage& stage, float* out,
                                                           Body&& body) const {
    const int64_t whole = min(stage.last, whole_steps_);
    for (int64_t step = stage.first; step < whole; ++step, out += kStepSlots) {
      body(step - stage.first, Format::load(row.codes + step * kVectorBytes), out);
    }
    if (whole == stage.last) return;
    uint8_t padded[kVectorBytes] = {};
    __builtin_memcpy(padded, row.codes + whole * kVectorBytes,
                     static_cast<size_t>(row_bytes(product_.kind, product_.columns) - whole * kVectorBytes));
    body(whole - stage.first, Format::load(padded), out);
  }

  void fetch(const Stage& stage, int64_t r) const {
    const uint8_t* codes = row_at(stage, r).codes;
    for (int64_t step = stage.first; step < stage.last; ++step) prefetch<2>(codes, step * kVectorBytes);
  }

  const float* inputs_of(const Stage& stage, int64_t tile) const {
    return packed_ + (tile * steps_ * kStepSlots + stage.first * kStepSlots) * kTileTokens;
  }

  void multiply(const Stage& stage, const Stage& next, const Panel& panel, const Panel& next_panel) const {
    const Stage after = next.rows > 0 ? behind(next) : next;
    const int64_t tiles = tiles_of(tokens_), strips = stage.rows / kPanelRows;
    const int64_t blocks = (tiles + 1) / 2 * strips;
    int64_t block = 0;
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      for (int64_t strip = 0; strip < strips; ++strip, ++block) {
        const int64_t first = block * next.rows / blocks, last = (block + 1) * next.rows / blocks;
        for (int64_t r = first; r < last; ++r) expand(next, r, next_panel);
        for (int64_t r = first; r < min(last, after.rows); ++r) fetch(after, r);
        fetch_inputs(tile + 2 < tiles ? stage : next, tile + 2 < tiles ? tile + 2 : 0, strip, strips);
        multiply_block(stage, panel, tile, strip * kPanelRows);
        if (stage.last == steps_) write(stage, panel, tile, strip * kPanelRows);
      }
    }
  }

  /// Fetches the share of a strip in the inputs of a block.
  void fetch_inputs(const Stage& stage, int64_t tile, int64_t strip, int64_t strips) const {
    const int64_t lines = (stage.last - stage.first) * kStepSlots;
    for (int64_t i = strip * lines / strips; i < (strip + 1) * lines / strips; ++i) {
      for (int64_t t = tile; t < min(tile + 2, tiles_of(tokens_)); ++t) {
        __builtin_prefetch(inputs_of(stage, t) + i * kTileTokens, 0, 2);
      }
    }
  }

  void multiply_block(const Stage& stage, const Panel& panel, int64_t tile, int64_t r) const {
    const int64_t sum_stride = stage.rows * kTileTokens;
    const Block block{panel.slots + r * kPanelStride,
                      inputs_of(stage, tile),
                      steps_ * kStepSlots * kTileTokens,
                      (stage.last - stage.first) * kStepSlots,
                      scratch_.sums + tile * sum_stride + r * kTileTokens,
                      sum_stride,
                      stage.first > 0};
    if (tile + 1 < tiles_of(tokens_)) {
      add<2>(block, panel.factors + r);
    } else {
      add<1>(block, panel.factors + r);
    }
  }

  template <int kTiles>
  void add(const Block& block, const float* factors) const {
    if (is_scaled_) {
      add_scaled_block<kTiles>(block, factors, scratch_.part);
    } else {
      add_block<kTiles>(block);
    }
  }

  /// What can be written once the sums of a block are complete.
  void write(const Stage& stage, const Panel& panel, int64_t first_tile, int64_t first_row) const {
    const int64_t gate = out_.silu_mul ? stage.rows / 2 : 0;
    const int64_t first_column = stage.panel * (out_.silu_mul ? kMostPanelRows / 2 : kMostPanelRows);
    for (int64_t row = first_row; row < first_row + kPanelRows; row += kLanes) {
      const int64_t r = row - gate;
      const int64_t column = first_column + r;
      if (r < 0 || column >= out_.columns) continue;
      for (int64_t tile = first_tile; tile < min(first_tile + 2, tiles_of(tokens_)); ++tile) {
        const int64_t token = tile * kTileTokens;
        const float* factors = is_scaled_ ? nullptr : panel.factors + r;  // those of segments are in the sums
        write_tile(scratch_.sums + (tile * stage.rows + r) * kTileTokens, factors, gate, tokens_ - token,
                   out_.columns - column, out_.y + token * out_.stride + column, out_.stride);
      }
    }
  }

  const Product& product_;
  const Row* rows_;
  const int64_t count_;
  const float* packed_;
  const int64_t tokens_;
  const Output& out_;
  const Scratch scratch_;
  const Course course_ = course_of<Format>(product_, scale_use<Format>(product_));
  const int64_t steps_ = steps_of<Format>(product_);
  const int64_t whole_steps_ = product_.columns / kStepWeights<Format>;
  const bool is_scaled_ = course_.steps_of_factor < steps_;
};

Layout layout(const Product& product) {
  return {slots_of(product), kTileTokens, kPanelRows, kMostRows, kMostTokens, kFewTokens};
}

void pack(const Product& product, const Inputs& inputs, int64_t, float* tile) {
  with_pairs(product, [&](auto format) { pack_tile<decltype(format)>(product, inputs, tile); });
}

int64_t scratch_floats(const Product&, int64_t rows, int64_t tokens) {
  return min(rows, kMostPanelRows) * (2 * (kPanelStride + 1) + tiles_of(tokens) * kTileTokens) +
         2 * kPanelRows * kTileTokens;
}

void products(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens,
              float* scratch, const Output& out) {
  const cpu::amx::Tiles tiles;
  with_pairs(product,
             [&](auto format) { Item<decltype(format)>(product, rows, count, packed, tokens, scratch, out).run(); });
}

}  // namespace

bool takes(const Product& product) {
  if (!product.round_inputs) return false;
  return with_pairs(product, [&](auto format) { return scale_use<decltype(format)>(product) != ScaleUse::kNumbers; });
}

extern const ManyKernels kManyKernels{layout, pack, scratch_floats, products};

}  // namespace sala::linear::amx
