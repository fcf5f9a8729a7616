#include "linear/int4_fast.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "linear/int4_fast_simd.h"

namespace sala::linear {
namespace {

constexpr int64_t kLongestGroup = 128;
constexpr int64_t kFewTokens = 12;  // up to so many, spreading rows out costs more than it saves
constexpr int64_t kGroupCodes = 8 * kGroupWords;
constexpr int64_t kFewColumns = 64;  // of y, that a thread computes at a time
constexpr int64_t kMostRows = 2 * kFewColumns;
static_assert(kMostRows >= 2 * kMostVectorLanes);

struct Kernels {
  const Int4Kernels& int4;
  const LinearKernels& linear;
};

Kernels kernels_of(cpu::SimdLevel level) {
#define SALA_INT4(constant, name) {cpu::SimdLevel::constant, &name::kInt4Kernels},
#define SALA_LINEAR(constant, name) {cpu::SimdLevel::constant, &name::kLinearKernels},
  return {cpu::highest<Int4Kernels>({SALA_FOR_EACH_INT4_LEVEL(SALA_INT4)}, level),
          cpu::highest<LinearKernels>({SALA_FOR_EACH_SIMD_LEVEL(SALA_LINEAR)}, level)};
#undef SALA_INT4
#undef SALA_LINEAR
}

Int4Groups groups_of(const LinearCall& call) {
  int64_t columns = call.columns;
  for (const StoredWeight& weight : call.weights) columns = std::gcd(columns, call.columns / weight.column_blocks);
  int64_t group = std::min(columns, kLongestGroup);
  while (columns % group != 0) --group;
  return {call.columns / group, group};
}

int64_t scale_bytes(ScaleType type) { return type == ScaleType::kFloat32 ? 4 : type == ScaleType::kFloat8 ? 1 : 2; }

/// The columns [first, first + count) of y, and the rows of the weights that they need.
struct Item {
  int64_t first;
  int64_t count;
};

using Rows = std::array<Row, kMostRows>;

/// A call, and what all its parts share.
class Int4Product {
 public:
  Int4Product(const LinearCall& call, const cpu::ParallelFor& parallel, Kernels kernels)
      : call_(call), parallel_(parallel), kernels_(kernels), groups_(groups_of(call)) {
    for (const StoredWeight& weight : call.weights) width_ += weight.rows;
    if (call.silu_mul) width_ /= 2;
  }

  Status run() const { return call_.tokens <= kFewTokens ? run_few() : run_many(); }

 private:
  Status run_few() const {
    const int64_t blocks = (call_.tokens + kBlockTokens - 1) / kBlockTokens;
    const cpu::FloatBuffer memory = cpu::allocate_floats(blocks * floats_of_block());
    if (memory == nullptr) return no_memory(blocks * floats_of_block());
    encode_blocks(memory.get());
    const int64_t out_floats = kMostRows * call_.tokens;
    return for_each_item(kFewColumns, out_floats + few_scratch_floats(groups_), [&](Item item, float* scratch) {
      Rows rows;
      const int64_t num_rows = find_rows(item, item.count, rows);
      for (int64_t t = 0; t < call_.tokens; t += kBlockTokens) {
        const int64_t tokens = std::min(kBlockTokens, call_.tokens - t);
        kernels_.int4.few(rows.data(), num_rows, groups_, token_codes(memory.get(), t), tokens, scratch + out_floats,
                          scratch + t, call_.tokens);
      }
      if (call_.silu_mul) {
        const int64_t numbers = item.count * call_.tokens;
        kernels_.linear.silu_mul(scratch, scratch + numbers, numbers, scratch);
      }
      for (int64_t t = 0; t < call_.tokens; ++t) {
        float* y = call_.y + t * width_ + item.first;
        for (int64_t i = 0; i < item.count; ++i) y[i] = scratch[i * call_.tokens + t];
      }
    });
  }

  void encode_blocks(float* memory) const {
    for (int64_t t = 0; t < call_.tokens; ++t) {
      kernels_.int4.encode(call_.x + t * call_.columns, groups_, token_codes(memory, t));
    }
    // Scales and bases of a block are read together: those of tokens that are not there must be numbers.
    for (int64_t t = call_.tokens; t % kBlockTokens > 1; ++t) {
      const TokenCodes absent = token_codes(memory, t);
      for (int64_t g = 0; g < groups_.count; ++g) absent.scales[g * kBlockTokens] = absent.bases[g * kBlockTokens] = 0;
    }
  }

  /// A token's place in the blocks of few tokens, as the kernels read them.
  TokenCodes token_codes(float* memory, int64_t token) const {
    const int64_t in_block = token % kBlockTokens;
    const int64_t tokens = std::min(kBlockTokens, call_.tokens - (token - in_block));
    float* block = memory + token / kBlockTokens * floats_of_block();
    float* scales = block + groups_.count * kBlockTokens * kGroupCodes / 4;
    return {reinterpret_cast<int8_t*>(block) + in_block * kGroupCodes, tokens * kGroupCodes, scales + in_block,
            scales + groups_.count * kBlockTokens + in_block, scales_of(tokens)};
  }

  int64_t floats_of_block() const { return groups_.count * kBlockTokens * (kGroupCodes / 4 + 2); }

  Status run_many() const {
    const int64_t tiles = (call_.tokens + kTileTokens - 1) / kTileTokens;
    const cpu::FloatBuffer memory = cpu::allocate_floats(tiles * floats_of_tile());
    if (memory == nullptr) return no_memory(tiles * floats_of_tile());
    if (Status encoded = encode_tiles(tiles, memory.get()); !encoded) return encoded;
    const int64_t columns = call_.silu_mul ? kernels_.int4.lanes : 2 * kernels_.int4.lanes;
    const int64_t out_floats = kTileTokens * 2 * kernels_.int4.lanes;
    return for_each_item(
        columns, out_floats + many_scratch_floats(groups_, kernels_.int4), [&](Item item, float* scratch) {
          Rows rows;
          find_rows(item, columns, rows);
          float* panel = scratch + out_floats;
          kernels_.int4.expand(rows.data(), groups_, panel);
          for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t first = tile * kTileTokens;
            const int64_t tokens = std::min(kTileTokens, call_.tokens - first);
            kernels_.int4.many(panel, groups_, tile_codes(memory.get() + tile * floats_of_tile()), tokens, scratch);
            for (int64_t t = 0; t < tokens; ++t) write(item, first + t, scratch + t * 2 * kernels_.int4.lanes);
          }
        });
  }

  Status encode_tiles(int64_t tiles, float* memory) const {
    const int64_t codes_floats = groups_.count * kGroupCodes / 4;
    const int64_t floats = codes_floats + 2 * groups_.count;
    return cpu::parallel_for_with_scratch(parallel_, tiles, floats, [&](int64_t tile, float* scratch) {
      float* scales = scratch + codes_floats;
      const TokenCodes token{reinterpret_cast<int8_t*>(scratch), kGroupCodes, scales, scales + groups_.count, 1};
      const int64_t first = tile * kTileTokens;
      for (int64_t t = first; t < std::min(first + kTileTokens, call_.tokens); ++t) {
        kernels_.int4.encode(call_.x + t * call_.columns, groups_, token);
        kernels_.int4.place(token, groups_, tile_codes(memory + tile * floats_of_tile()), t - first);
      }
    });
  }

  void write(Item item, int64_t token, const float* row) const {
    float* y = call_.y + token * width_ + item.first;
    if (call_.silu_mul) {
      kernels_.linear.silu_mul(row, row + kernels_.int4.lanes, item.count, y);
    } else {
      std::copy_n(row, item.count, y);
    }
  }

  template <class Body>
  Status for_each_item(int64_t columns, int64_t scratch_floats, Body&& body) const {
    const int64_t items = (width_ + columns - 1) / columns;
    return cpu::parallel_for_with_scratch(parallel_, items, scratch_floats, [&](int64_t i, float* scratch) {
      body(Item{i * columns, std::min(columns, width_ - i * columns)}, scratch);
    });
  }

  /// Finds the rows of an item, and with silu_mul the rows of its second half behind them. Where an item has less than
  /// `columns`, its last row is taken again. Returns their number.
  int64_t find_rows(Item item, int64_t columns, Rows& rows) const {
    int64_t found = 0;
    for (int64_t half = 0; half < (call_.silu_mul ? 2 : 1); ++half) {
      for (int64_t i = 0; i < columns; ++i) {
        rows[static_cast<size_t>(found++)] = row_at(half * width_ + item.first + std::min(i, item.count - 1));
      }
    }
    return found;
  }

  Row row_at(int64_t row) const {
    auto weight = call_.weights.begin();
    for (; row >= weight->rows; ++weight) row -= weight->rows;
    const bool is_own = weight->row_blocks == weight->rows;  // divisions take as long as a third of a row
    const int64_t block = is_own ? row : row / (weight->rows / weight->row_blocks);
    return {
        static_cast<const uint8_t*>(weight->codes) + row * row_bytes(WeightKind::kInt4, call_.columns),
        static_cast<const uint8_t*>(weight->scales) + block * weight->column_blocks * scale_bytes(weight->scale_type),
        weight->scale_type, call_.columns / weight->column_blocks};
  }

  int64_t floats_of_tile() const { return groups_.count * kTileTokens * 2 * (words_of(groups_) + 1); }

  TileCodes tile_codes(float* memory) const {
    float* scales = memory + groups_.count * kTileTokens * 2 * words_of(groups_);
    return {reinterpret_cast<int32_t*>(memory), scales,
            reinterpret_cast<int32_t*>(scales + groups_.count * kTileTokens)};
  }

  static Error no_memory(int64_t floats) {
    return error("Linear: out of memory: ", floats * static_cast<int64_t>(sizeof(float)), " bytes for codes of inputs");
  }

  const LinearCall& call_;
  const cpu::ParallelFor& parallel_;
  Kernels kernels_;
  Int4Groups groups_;
  int64_t width_ = 0;  // columns of y
};

}  // namespace

int64_t few_scratch_floats(Int4Groups groups) { return 17 * groups.count + kMostVectorLanes; }

int64_t many_scratch_floats(Int4Groups groups, const Int4Kernels& kernels) {
  return groups.count * (2 * kernels.lanes * (2 * words_of(groups) + 1) + 1) + kMostVectorLanes;
}

Status int4_fast(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  if (call.tokens == 0 || call.weights.empty()) return success();
  return Int4Product(call, parallel, kernels_of(level)).run();
}

}  // namespace sala::linear
