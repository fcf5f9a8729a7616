#include "linear/int4_fast.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <thread>

#include "linear/int4_fast_simd.h"

namespace sala::linear {
namespace {

constexpr int64_t kLongestGroup = 128;
constexpr int64_t kFewTokens = 12;  // up to so many, spreading rows out costs more than it saves
constexpr int64_t kGroupCodes = 8 * kGroupWords;
constexpr int64_t kFewColumns = 64;  // of y, that a thread computes at a time
constexpr int64_t kMostRows = 2 * kFewColumns;
constexpr int64_t kGroupsOfPanel = 32;   // of all rows, that a thread has in its panels at a time
constexpr int64_t kTokensOfBlock = 960;  // tokens whose codes and sums are in memory

Int4Groups groups_of(const LinearCall& call) {
  int64_t columns = call.columns;
  for (const StoredWeight& weight : call.weights) columns = std::gcd(columns, call.columns / weight.column_blocks);
  int64_t group = std::min(columns, kLongestGroup);
  while (columns % group != 0) --group;
  return {call.columns / group, group};
}

struct Kernels {
  const Int4Kernels& int4;
  const Int4Panels& panels;
  const LinearKernels& linear;
};

Kernels kernels_of(cpu::SimdLevel level, Int4Groups groups, int64_t tokens) {
#define SALA_INT4(constant, name) {cpu::SimdLevel::constant, &name::kInt4Kernels},
#define SALA_PANELS(constant, name) {cpu::SimdLevel::constant, &name::kInt4Panels},
#define SALA_LINEAR(constant, name) {cpu::SimdLevel::constant, &name::kLinearKernels},
  const auto& usual = cpu::highest<Int4Panels>({SALA_FOR_EACH_INT4_LEVEL(SALA_PANELS)}, level);
  const auto& best =
      cpu::highest<Int4Panels>({SALA_FOR_EACH_INT4_LEVEL(SALA_PANELS) SALA_FOR_INT4_TILES(SALA_PANELS)}, level);
  return {cpu::highest<Int4Kernels>({SALA_FOR_EACH_INT4_LEVEL(SALA_INT4)}, level),
          tokens >= best.least_tokens && groups.columns >= best.least_columns ? best : usual,
          cpu::highest<LinearKernels>({SALA_FOR_EACH_SIMD_LEVEL(SALA_LINEAR)}, level)};
#undef SALA_INT4
#undef SALA_PANELS
#undef SALA_LINEAR
}

/// The columns [first, first + count) of y, and the rows of the weights that they need.
struct Item {
  int64_t first;
  int64_t count;
};

using Rows = std::array<Row, kMostRows>;

/// A call, and what all its parts share.
class Int4Product {
 public:
  Int4Product(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel level)
      : call_(call), parallel_(parallel), groups_(groups_of(call)), kernels_(kernels_of(level, groups_, call.tokens)) {
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

  int64_t halves() const { return call_.silu_mul ? 2 : 1; }

  Status run_many() const {
    const int64_t most = std::min(call_.tokens, kTokensOfBlock);
    const int64_t floats = tiles_of(most) * groups_.count * panels_.tile_floats(groups_);
    const cpu::FloatBuffer memory = cpu::allocate_floats(floats);
    if (memory == nullptr) return no_memory(floats);
    for (int64_t first = 0; first < call_.tokens; first += most) {
      const int64_t tokens = std::min(most, call_.tokens - first);
      SALA_RETURN_IF_ERROR(encode_tiles(first, tokens, memory.get()));
      SALA_RETURN_IF_ERROR(multiply_tiles(first, tokens, memory.get()));
    }
    return success();
  }

  int64_t tiles_of(int64_t tokens) const { return (tokens + panels_.tokens - 1) / panels_.tokens; }

  Status encode_tiles(int64_t first, int64_t tokens, float* memory) const {
    const int64_t codes_floats = groups_.count * kGroupCodes / 4;
    const int64_t floats = codes_floats + 2 * groups_.count;
    return cpu::parallel_for_with_scratch(parallel_, tiles_of(tokens), floats, [&](int64_t tile, float* scratch) {
      float* scales = scratch + codes_floats;
      const TokenCodes token{reinterpret_cast<int8_t*>(scratch), kGroupCodes, scales, scales + groups_.count, 1};
      float* to = memory + tile * groups_.count * panels_.tile_floats(groups_);
      for (int64_t t = tile * panels_.tokens; t < std::min((tile + 1) * panels_.tokens, tokens); ++t) {
        kernels_.int4.encode(call_.x + (first + t) * call_.columns, groups_, token);
        panels_.place(token, groups_, to, t - tile * panels_.tokens);
      }
    });
  }

  /// Panels of an item: several, so that tiles are read seldom, but enough items for all threads.
  int64_t panels_of_item() const {
    const int64_t items_wanted = 4 * static_cast<int64_t>(std::max(1U, std::thread::hardware_concurrency()));
    int64_t panels = kMostRows / panels_.rows / halves() * halves();
    while (panels > halves() && width_ * halves() < items_wanted * panels * panels_.rows) panels /= 2;
    return panels;
  }

  Status multiply_tiles(int64_t first, int64_t tokens, const float* memory) const {
    const int64_t panels = panels_of_item();
    const int64_t columns = panels / halves() * panels_.rows;
    const int64_t panel_floats = kGroupsOfPanel * panels_.panel_floats(groups_);
    const int64_t tile_floats = panels_.tile_floats(groups_);
    const int64_t sums_floats = panels_.tokens * panels_.rows;
    const int64_t tiles = tiles_of(tokens);
    const int64_t all_sums = tiles * panels * sums_floats;
    const int64_t floats = all_sums + panels * panel_floats + scales_floats(groups_);
    return for_each_item(columns, floats, [&](Item item, float* sums) {
      Rows rows;
      find_rows(item, columns, rows);
      std::fill_n(sums, all_sums, 0.0f);
      float* panel = sums + all_sums;
      for (int64_t g = 0; g < groups_.count; g += kGroupsOfPanel) {
        const int64_t count = std::min(kGroupsOfPanel, groups_.count - g);
        for (int64_t p = 0; p < panels; ++p) {
          panels_.expand(rows.data() + p * panels_.rows, groups_, g, count, panel + p * panel_floats,
                         panel + panels * panel_floats);
        }
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const float* codes = memory + (tile * groups_.count + g) * tile_floats;
          const int64_t here = std::min(panels_.tokens, tokens - tile * panels_.tokens);
          for (int64_t p = 0; p < panels; ++p) {
            panels_.add(panel + p * panel_floats, groups_, count, codes, here,
                        sums + (tile * panels + p) * sums_floats);
          }
        }
      }
      write_tokens(item, first, tokens, panels, sums);
    });
  }

  /// Writes an item's columns of a block of tokens from sums [tiles, panels, ...].
  void write_tokens(Item item, int64_t first, int64_t tokens, int64_t panels, float* sums) const {
    const int64_t sums_floats = panels_.tokens * panels_.rows;
    for (int64_t i = 0; panels_.transpose != nullptr && i < tiles_of(tokens) * panels; ++i) {
      panels_.transpose(sums + i * sums_floats);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = sums + t / panels_.tokens * panels * sums_floats + t % panels_.tokens * panels_.rows;
      write(item, row, sums_floats, row + panels / 2 * sums_floats, call_.y + (first + t) * width_ + item.first);
    }
  }

  /// Writes an item's columns of a token from sums that lie in panels; `second` are those of the second half.
  void write(Item item, const float* sums, int64_t panel_stride, const float* second, float* y) const {
    for (int64_t c = 0; c < item.count; c += panels_.rows) {
      const int64_t count = std::min(panels_.rows, item.count - c);
      const int64_t at = c / panels_.rows * panel_stride;
      if (call_.silu_mul) {
        kernels_.linear.silu_mul(sums + at, second + at, count, y + c);
      } else {
        std::copy_n(sums + at, count, y + c);
      }
    }
  }

  template <class Body>
  Status for_each_item(int64_t columns, int64_t scratch_floats, Body&& body) const {
    const int64_t items = (width_ + columns - 1) / columns;
    return cpu::parallel_for_with_scratch(parallel_, items, scratch_floats, [&](int64_t i, float* scratch) {
      body(Item{i * columns, std::min(columns, width_ - i * columns)}, scratch);
    });
  }

  /// Finds `columns` rows of an item, and with silu_mul as many of its second half behind them. Returns their number.
  int64_t find_rows(Item item, int64_t columns, Rows& rows) const {
    for (int64_t half = 0; half < halves(); ++half) {
      rows_at(call_, half * width_ + item.first, columns, rows.data() + half * columns);
    }
    return halves() * columns;
  }

  static Error no_memory(int64_t floats) {
    return error("Linear: out of memory: ", floats * static_cast<int64_t>(sizeof(float)), " bytes for codes of inputs");
  }

  const LinearCall& call_;
  const cpu::ParallelFor& parallel_;
  Int4Groups groups_;
  Kernels kernels_;
  const Int4Panels& panels_ = kernels_.panels;
  int64_t width_ = 0;  // columns of y
};

}  // namespace

int64_t scales_floats(Int4Groups groups) { return groups.count + kMostVectorLanes; }

int64_t few_scratch_floats(Int4Groups groups) { return scales_floats(groups) + 16 * groups.count; }

Status int4_fast(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  if (call.tokens == 0 || call.weights.empty()) return success();
  return Int4Product(call, parallel, level).run();
}

}  // namespace sala::linear
