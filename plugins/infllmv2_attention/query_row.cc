#include "infllmv2_attention/query_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sala::ops {
namespace {

constexpr int64_t kTileKeys = 64;  // keys whose scores are held at once, where blocks do not set another number
constexpr float kLog2E = 1.44269504f;

/// Windows of `size` keys every `stride` that end at or before `position`.
int64_t visible_windows(int64_t position, int64_t size, int64_t stride) {
  return position + 1 < size ? 0 : (position + 1 - size) / stride + 1;
}

}  // namespace

Plan::Plan(const InfLLMv2AttentionSizes& sizes, const InfLLMv2Kernels& kernels)
    : sizes(sizes),
      kernels(kernels),
      heads(sizes.num_heads / sizes.num_kv_heads),
      columns((heads + kernels.lanes - 1) / kernels.lanes * kernels.lanes),
      window_blocks(sizes.window_size / sizes.block_size),
      max_taken(sizes.topk + window_blocks),
      keys_per_block(sizes.block_size / sizes.kernel_stride),
      row_bytes(sizes.head_dim * kernels.cache_bytes),
      score_floats(columns * std::max({kTileKeys, sizes.block_size, score_tile_blocks(*this) * keys_per_block})) {}

int64_t score_tile_blocks(const Plan& plan) { return std::max<int64_t>(1, kTileKeys / plan.keys_per_block); }

int64_t probability_floats(const Plan& plan) { return score_tile_blocks(plan) * plan.keys_per_block + 1; }

void QueryRow::place(const Plan& plan, Arena& arena) {
  plan_ = &plan;
  packed_ = arena.floats(plan.sizes.head_dim * plan.columns);
  maximum_ = arena.floats(plan.columns);
  inverse_total_ = arena.floats(plan.columns);
  list_ = arena.blocks(plan.max_taken);
}

void QueryRow::start(const KeyHead& keys, const float* q, int64_t position, bool is_sparse) {
  const InfLLMv2AttentionSizes& sizes = plan_->sizes;
  keys_ = keys;
  position_ = position;
  is_sparse_ = is_sparse;
  visible_k1_ = visible_windows(position, sizes.kernel_size, sizes.kernel_stride);
  visible_k2_ = visible_windows(position, 4 * sizes.kernel_size, 4 * sizes.kernel_stride);
  candidates_ = candidates_of(position, sizes.block_size, sizes.topk, plan_->window_blocks, sizes.init_blocks);
  blocks_ = {nullptr, candidates_.own + 1};
  group_ = {packed_, sizes.scale * kLog2E, plan_->heads, plan_->columns, sizes.head_dim};
  plan_->kernels.pack_queries(q, plan_->heads, sizes.head_dim, plan_->columns, group_.factor, packed_);
}

void QueryRow::normalise(int64_t first, int64_t last, SoftmaxSum sum, float* scores) const {
  last = std::min(last, visible_k2_);
  for (int64_t key = first; key < last; key += kTileKeys) {
    const int64_t count = std::min(kTileKeys, last - key);
    plan_->kernels.accumulate(group_, keys_.k2 + key * plan_->row_bytes, nullptr, count, sum, scores);
  }
}

void QueryRow::set_normaliser(SoftmaxSum sum) {
  for (int64_t column = 0; column < group_.columns; ++column) {
    const bool counts = column < group_.heads && visible_k2_ > 0;
    maximum_[column] = counts ? sum.maximum[column] : 0.0f;
    inverse_total_[column] = counts ? 1.0f / sum.total[column] : 0.0f;
  }
}

void QueryRow::probabilities(int64_t first, int64_t count, float* p, float* scores) const {
  const int64_t visible = visible_k2_ == 0 ? 0 : std::clamp<int64_t>(visible_k1_ - first, 0, count);
  if (visible > 0) {
    plan_->kernels.probabilities(group_, keys_.k1 + first * plan_->row_bytes, visible, maximum_, inverse_total_, p,
                                 scores);
  }
  std::fill(p + visible, p + count, 0.0f);
}

BlockScan QueryRow::new_scan(int64_t first, BlockSelector::Entry* memory, float* scores) const {
  BlockScan scan{BlockSelector(memory, candidates_.wanted)};
  if (first > 0) probabilities(plan_->keys_per_block * first - 1, 1, &scan.last_p, scores);
  return scan;
}

void QueryRow::score_blocks(int64_t first, int64_t last, BlockScan& scan, float* p, float* scores) const {
  const int64_t ratio = plan_->keys_per_block;
  const int64_t tile = score_tile_blocks(*plan_);
  last = std::min(last, candidates_.last);
  for (int64_t start = std::max(first, candidates_.first); start < last; start += tile) {
    const int64_t stop = std::min(start + tile, last);
    const int64_t keys = ratio * (stop - start);
    p[0] = scan.last_p;
    probabilities(ratio * start, keys, p + 1, scores);
    scan.last_p = p[keys];
    for (int64_t block = start; block < stop; ++block) {
      const float* window = p + (block - start) * ratio;
      float highest = 0.0f;
      for (int64_t i = 0; i <= ratio; ++i) highest = window[i] > highest ? window[i] : highest;
      scan.selector.offer(static_cast<int32_t>(block), highest);
    }
  }
}

void QueryRow::select(std::span<const BlockSelector::Entry> selected) {
  blocks_ = {list_, list_blocks(candidates_, selected, list_)};
}

void QueryRow::attend(int64_t block, SoftmaxSum sum, float* scores) const {
  const int64_t first = block * plan_->sizes.block_size;
  const int64_t count = std::min(plan_->sizes.block_size, position_ + 1 - first);
  const int64_t offset = first * plan_->row_bytes;
  plan_->kernels.accumulate(group_, keys_.k + offset, keys_.v + offset, count, sum, scores);
}

void QueryRow::prefetch(const char* cache, int64_t block) const {
  constexpr int64_t kLineBytes = 64;
  const int64_t first = block * plan_->sizes.block_size;
  const int64_t count = std::min(plan_->sizes.block_size, position_ + 1 - first);
  const char* rows = cache + first * plan_->row_bytes;
  for (int64_t i = 0; i < count * plan_->row_bytes; i += kLineBytes) __builtin_prefetch(rows + i, 0, 2);
}

SoftmaxSum new_sum(const Plan& plan, Arena& arena, bool with_values) {
  float* maximum = arena.floats(plan.columns);
  float* total = arena.floats(plan.columns);
  return {maximum, total, with_values ? arena.floats(plan.heads * plan.sizes.head_dim) : nullptr};
}

void clear(const Plan& plan, SoftmaxSum sum) {
  std::fill_n(sum.maximum, plan.columns, -std::numeric_limits<float>::infinity());
  std::fill_n(sum.total, plan.columns, 0.0f);
  if (sum.o != nullptr) std::fill_n(sum.o, plan.heads * plan.sizes.head_dim, 0.0f);
}

}  // namespace sala::ops
