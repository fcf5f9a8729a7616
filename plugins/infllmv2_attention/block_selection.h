// Which blocks a query takes: the forced ones, and those of the highest scores with ties to the lower index.

#pragma once

#include <cstdint>
#include <span>

namespace sala::ops {

/// Keeps the `wanted` best of a stream of scored blocks in bounded memory.
class BlockSelector {
 public:
  struct Entry {
    float score;
    int32_t block;
  };

  /// Entries that the memory of a selector must hold: `wanted` and room to gather more between two cuts.
  static constexpr int64_t capacity(int64_t wanted) { return wanted + 256; }

  BlockSelector() = default;

  /// `memory` holds capacity(wanted) entries and outlives the selector.
  BlockSelector(Entry* memory, int64_t wanted) : entries_(memory), wanted_(wanted) {}

  /// Blocks must be offered in rising order; scores are not NaN.
  void offer(int32_t block, float score) {
    if (has_cut_ && !(score > cut_)) return;  // an equal score of a later block loses
    entries_[count_++] = {score, block};
    if (count_ == capacity(wanted_)) keep_best();
  }

  /// The best blocks, at most `wanted`, in rising order of their index.
  std::span<const Entry> finish();

 private:
  void keep_best();

  Entry* entries_ = nullptr;
  int64_t wanted_ = 0;
  int64_t count_ = 0;
  bool has_cut_ = false;
  float cut_ = 0.0f;  // lowest score kept at the last cut
};

/// The blocks that a query must choose among: those that are neither forced nor after its own.
struct Candidates {
  int64_t first;   // the blocks before `first` are forced
  int64_t last;    // the blocks from `last` to `own` are forced
  int64_t own;     // the query's own block
  int64_t wanted;  // how many candidates it takes

  bool takes_all() const { return last - first <= wanted; }
};

/// For the query at `position`; `window_blocks` counts the forced blocks before its own.
Candidates candidates_of(int64_t position, int64_t block_size, int64_t topk, int64_t window_blocks,
                         int64_t init_blocks);

/// Writes forced and selected blocks in rising order; returns their number.
int64_t list_blocks(const Candidates& candidates, std::span<const BlockSelector::Entry> selected, int32_t* blocks);

}  // namespace sala::ops
