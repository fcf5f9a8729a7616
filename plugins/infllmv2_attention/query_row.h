// One query token and one key head of InfLLMv2Attention: its scores of blocks, and its attention to a range of blocks.
// Drivers decide which ranges are done together (prefill) or on different threads (decode).

#pragma once

#include <cstdint>

#include "infllmv2_attention/block_selection.h"
#include "infllmv2_attention/infllmv2_attention_cpu.h"
#include "infllmv2_attention/infllmv2_attention_simd.h"

namespace sala::ops {

/// What all rows of a call share.
struct Plan {
  Plan(const InfLLMv2AttentionSizes& sizes, const InfLLMv2Kernels& kernels);

  const InfLLMv2AttentionSizes& sizes;
  const InfLLMv2Kernels& kernels;
  int64_t heads;    // query heads per key head
  int64_t columns;  // heads rounded up to whole vectors
  int64_t window_blocks;
  int64_t max_taken;       // blocks that a sparse row attends to
  int64_t keys_per_block;  // k1 keys per block
  int64_t row_bytes;       // of a key or value
  int64_t score_floats;    // scratch of one call of a kernel
};

/// Hands out parts of a scratch allocation; also used to count how much is needed.
class Arena {
 public:
  explicit Arena(float* memory) : memory_(memory) {}

  float* floats(int64_t count) { return take(count); }
  int32_t* blocks(int64_t count) { return reinterpret_cast<int32_t*>(take(count)); }
  BlockSelector::Entry* entries(int64_t count) { return reinterpret_cast<BlockSelector::Entry*>(take(2 * count)); }
  int64_t used() const { return used_; }

 private:
  float* take(int64_t count) {
    float* part = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (count + 15) / 16 * 16;  // whole cache lines
    return part;
  }

  float* memory_;
  int64_t used_ = 0;
};

/// The caches of one batch entry and key head, after the chunk was appended.
struct KeyHead {
  const char* k;
  const char* v;
  const char* k1;
  const char* k2;
};

/// Blocks in rising order, or all blocks 0 .. count - 1 if `list` is null.
struct BlockList {
  const int32_t* list;
  int64_t count;

  int64_t at(int64_t i) const { return list == nullptr ? i : list[i]; }
};

/// A pass over the candidate blocks of a row.
struct BlockScan {
  BlockSelector selector;
  float last_p = 0.0f;  // P of the k1 key before the next block, which counts for both its neighbours
};

class QueryRow {
 public:
  /// Takes the row's memory from `arena`. Call once, first.
  void place(const Plan& plan, Arena& arena);

  /// Binds the row to the query heads `q` [R, D] at `position`; `is_sparse` as the rule of dense_len says.
  void start(const KeyHead& keys, const float* q, int64_t position, bool is_sparse);

  const QueryGroup& group() const { return group_; }

  /// True if the row has to score blocks before it can attend.
  bool selects() const { return is_sparse_ && !candidates_.takes_all(); }
  const Candidates& candidates() const { return candidates_; }
  int64_t visible_k2() const { return visible_k2_; }

  /// Adds k2 keys [first, last), clipped to the visible ones, to a log-sum-exp.
  void normalise(int64_t first, int64_t last, SoftmaxSum sum, float* scores) const;

  /// Takes the finished log-sum-exp, of no keys if no k2 is visible. Call once before blocks are scored.
  void set_normaliser(SoftmaxSum sum);

  /// A scan that starts at candidate block `first`. `memory` holds BlockSelector::capacity(candidates().wanted).
  BlockScan new_scan(int64_t first, BlockSelector::Entry* memory, float* scores) const;

  /// Continues a scan with the candidates among blocks [first, last). `p` is scratch of `probability_floats`.
  void score_blocks(int64_t first, int64_t last, BlockScan& scan, float* p, float* scores) const;

  /// Fixes the blocks to attend to; without it, the row attends to all.
  void select(std::span<const BlockSelector::Entry> selected);
  const BlockList& blocks() const { return blocks_; }

  void attend(int64_t block, SoftmaxSum sum, float* scores) const;

  /// Starts to load what `attend` reads of a block: its rows lie where the hardware does not look ahead.
  void prefetch_keys(int64_t block) const { prefetch(keys_.k, block); }
  void prefetch_values(int64_t block) const { prefetch(keys_.v, block); }

 private:
  void prefetch(const char* cache, int64_t block) const;
  void probabilities(int64_t first, int64_t count, float* p, float* scores) const;

  const Plan* plan_ = nullptr;
  KeyHead keys_{};
  QueryGroup group_{};
  float* packed_ = nullptr;
  float* maximum_ = nullptr;
  float* inverse_total_ = nullptr;
  int32_t* list_ = nullptr;
  int64_t position_ = 0;
  int64_t visible_k1_ = 0;
  int64_t visible_k2_ = 0;
  bool is_sparse_ = false;
  Candidates candidates_{};
  BlockList blocks_{};
};

/// `with_values` as in SoftmaxSum; contents undefined.
SoftmaxSum new_sum(const Plan& plan, Arena& arena, bool with_values);
void clear(const Plan& plan, SoftmaxSum sum);

/// Blocks whose k1 keys are scored in one go.
int64_t score_tile_blocks(const Plan& plan);

/// Floats of the scratch `p` of `score_blocks`.
int64_t probability_floats(const Plan& plan);

}  // namespace sala::ops
