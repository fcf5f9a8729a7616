#include "infllmv2_attention/block_selection.h"

#include <algorithm>

namespace sala::ops {

void BlockSelector::keep_best() {
  if (wanted_ > 0) {
    std::nth_element(entries_, entries_ + wanted_ - 1, entries_ + count_, [](const Entry& a, const Entry& b) {
      return a.score != b.score ? a.score > b.score : a.block < b.block;
    });
    cut_ = entries_[wanted_ - 1].score;
    has_cut_ = true;
  }
  count_ = wanted_;
}

std::span<const BlockSelector::Entry> BlockSelector::finish() {
  if (count_ > wanted_) keep_best();
  std::sort(entries_, entries_ + count_, [](const Entry& a, const Entry& b) { return a.block < b.block; });
  return {entries_, static_cast<size_t>(count_)};
}

Candidates candidates_of(int64_t position, int64_t block_size, int64_t topk, int64_t window_blocks,
                         int64_t init_blocks) {
  const int64_t own = position / block_size;
  const int64_t first = std::min(init_blocks, own + 1);
  const int64_t last = std::max(first, own - window_blocks);
  const int64_t forced = first + own + 1 - last;
  return {.first = first, .last = last, .own = own, .wanted = topk + window_blocks - forced};
}

int64_t list_blocks(const Candidates& candidates, std::span<const BlockSelector::Entry> selected, int32_t* blocks) {
  int64_t count = 0;
  for (int64_t block = 0; block < candidates.first; ++block) blocks[count++] = static_cast<int32_t>(block);
  for (const BlockSelector::Entry& entry : selected) blocks[count++] = entry.block;
  for (int64_t block = candidates.last; block <= candidates.own; ++block) blocks[count++] = static_cast<int32_t>(block);
  return count;
}

}  // namespace sala::ops
