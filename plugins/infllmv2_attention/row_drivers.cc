#include "infllmv2_attention/row_drivers.h"

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

namespace sala::ops {
namespace {

constexpr int64_t kTileTokens = 16;
constexpr int64_t kMaxParts = 64;

/// A tile of neighbouring rows of one key head.
class Tile {
 public:
  Tile(const Plan& plan, float* memory) : plan_(&plan), arena_(memory) {
    for (int64_t i = 0; i < kTileTokens; ++i) {
      rows_[i].place(plan, arena_);
      sums_[i] = new_sum(plan, arena_, true);
      entries_[i] = arena_.entries(BlockSelector::capacity(plan.max_taken));
    }
    p_ = arena_.floats(probability_floats(plan));
    scores_ = arena_.floats(plan.score_floats);
  }

  int64_t floats() const { return arena_.used(); }

  void run(const RowView& view, int64_t first, int64_t count) {
    count_ = count;
    for (int64_t i = 0; i < count; ++i) view.start(rows_[i], first + i);
    normalise();
    select();
    attend();
    for (int64_t i = 0; i < count; ++i) view.finish(rows_[i], first + i, sums_[i]);
  }

 private:
  void normalise() {
    int64_t visible = 0;
    for (int64_t i = 0; i < count_; ++i) {
      clear(*plan_, sums_[i]);
      if (rows_[i].selects()) visible = std::max(visible, rows_[i].visible_k2());
    }
    constexpr int64_t kStep = 64;
    for (int64_t key = 0; key < visible; key += kStep) {
      for (int64_t i = 0; i < count_; ++i) {
        if (rows_[i].selects()) rows_[i].normalise(key, key + kStep, sums_[i], scores_);
      }
    }
  }

  void select() {
    std::array<BlockScan, kTileTokens> scans;
    int64_t first = std::numeric_limits<int64_t>::max();
    int64_t last = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (!rows_[i].selects()) continue;
      rows_[i].set_normaliser(sums_[i]);
      const Candidates& candidates = rows_[i].candidates();
      scans[i] = rows_[i].new_scan(candidates.first, entries_[i], scores_);
      first = std::min(first, candidates.first);
      last = std::max(last, candidates.last);
    }
    const int64_t step = score_tile_blocks(*plan_);
    for (int64_t block = first; block < last; block += step) {
      for (int64_t i = 0; i < count_; ++i) {
        if (rows_[i].selects()) rows_[i].score_blocks(block, block + step, scans[i], p_, scores_);
      }
    }
    for (int64_t i = 0; i < count_; ++i) {
      if (rows_[i].selects()) rows_[i].select(scans[i].selector.finish());
    }
  }

  /// Goes through the blocks in rising order; whatever rows take a block use it while it is in the cache.
  void attend() {
    constexpr int64_t kEnd = std::numeric_limits<int64_t>::max();
    std::array<int64_t, kTileTokens> cursor{};
    const auto next = [&](int64_t i) {
      const BlockList& blocks = rows_[i].blocks();
      return cursor[i] < blocks.count ? blocks.at(cursor[i]) : kEnd;
    };
    for (int64_t i = 0; i < count_; ++i) clear(*plan_, sums_[i]);
    while (true) {
      int64_t block = kEnd;
      for (int64_t i = 0; i < count_; ++i) block = std::min(block, next(i));
      if (block == kEnd) return;
      for (int64_t i = 0; i < count_; ++i) {
        if (next(i) != block) continue;
        rows_[i].attend(block, sums_[i], scores_);
        ++cursor[i];
      }
    }
  }

  const Plan* plan_;
  Arena arena_;
  std::array<QueryRow, kTileTokens> rows_;
  std::array<SoftmaxSum, kTileTokens> sums_;
  std::array<BlockSelector::Entry*, kTileTokens> entries_;
  float* p_;
  float* scores_;
  int64_t count_ = 0;
};

/// [0, count) cut into at most kMaxParts parts of at least `smallest`.
struct Parts {
  Parts(int64_t count, int64_t smallest)
      : count(count), step(std::max(smallest, (count + kMaxParts - 1) / kMaxParts)) {}

  int64_t number() const { return (count + step - 1) / step; }
  int64_t first(int64_t part) const { return part * step; }
  int64_t last(int64_t part) const { return std::min(count, first(part) + step); }

  int64_t count;
  int64_t step;
};

/// A row with one set of intermediate results for each of its parts.
struct SplitRow {
  SplitRow(const Plan& plan, Arena& arena) {
    row.place(plan, arena);
    for (int64_t i = 0; i < kMaxParts; ++i) {
      sums[i] = new_sum(plan, arena, true);
      entries[i] = arena.entries(BlockSelector::capacity(plan.max_taken));
    }
    merged_entries = arena.entries(BlockSelector::capacity(plan.max_taken));
  }

  Parts normaliser_parts() const { return {row.selects() ? row.visible_k2() : 0, 256}; }
  Parts score_parts() const {
    const Candidates& candidates = row.candidates();
    return {row.selects() ? candidates.last - candidates.first : 0, 64};
  }
  Parts attend_parts() const { return {row.blocks().count, 8}; }

  QueryRow row;
  std::array<SoftmaxSum, kMaxParts> sums;
  std::array<BlockSelector::Entry*, kMaxParts> entries;
  std::array<std::span<const BlockSelector::Entry>, kMaxParts> selected;
  BlockSelector::Entry* merged_entries;
};

/// Runs `body(row, part, p, scores)` for every part of every row.
template <class PartsOf, class Body>
Status for_parts(const Plan& plan, std::vector<SplitRow>& rows, const cpu::ParallelFor& parallel, PartsOf parts_of,
                 Body body) {
  int64_t most = 0;
  for (const SplitRow& row : rows) most = std::max(most, parts_of(row).number());
  const auto scratch_of = [&plan](Arena& arena) {
    float* p = arena.floats(probability_floats(plan));
    return std::pair{p, arena.floats(plan.score_floats)};
  };
  Arena counter(nullptr);
  scratch_of(counter);
  return cpu::parallel_for_with_scratch(parallel, static_cast<int64_t>(rows.size()) * most, counter.used(),
                                        [&](int64_t i, float* memory) {
                                          SplitRow& row = rows[static_cast<size_t>(i / most)];
                                          if (i % most >= parts_of(row).number()) return;
                                          Arena arena(memory);
                                          const auto [p, scores] = scratch_of(arena);
                                          body(row, i % most, p, scores);
                                        });
}

/// Adds the sums of all parts to that of part 0.
void merge_parts(const Plan& plan, SplitRow& row, const Parts& parts, bool with_values) {
  const auto sum_of = [&](int64_t part) {
    SoftmaxSum sum = row.sums[part];
    if (!with_values) sum.o = nullptr;
    return sum;
  };
  for (int64_t part = 1; part < parts.number(); ++part) {
    plan.kernels.merge(row.row.group(), sum_of(0), sum_of(part));
  }
}

Status select_blocks(const Plan& plan, std::vector<SplitRow>& rows, const cpu::ParallelFor& parallel) {
  SALA_RETURN_IF_ERROR(for_parts(
      plan, rows, parallel, [](const SplitRow& row) { return row.normaliser_parts(); },
      [&](SplitRow& row, int64_t part, float*, float* scores) {
        const Parts parts = row.normaliser_parts();
        clear(plan, row.sums[part]);
        row.row.normalise(parts.first(part), parts.last(part), row.sums[part], scores);
      }));
  for (SplitRow& row : rows) {
    if (!row.row.selects()) continue;
    merge_parts(plan, row, row.normaliser_parts(), false);
    row.row.set_normaliser(row.sums[0]);
  }
  SALA_RETURN_IF_ERROR(for_parts(
      plan, rows, parallel, [](const SplitRow& row) { return row.score_parts(); },
      [](SplitRow& row, int64_t part, float* p, float* scores) {
        const Parts parts = row.score_parts();
        const int64_t first = row.row.candidates().first + parts.first(part);
        BlockScan scan = row.row.new_scan(first, row.entries[part], scores);
        row.row.score_blocks(first, row.row.candidates().first + parts.last(part), scan, p, scores);
        row.selected[part] = scan.selector.finish();
      }));
  for (SplitRow& row : rows) {
    if (!row.row.selects()) continue;
    BlockSelector selector(row.merged_entries, row.row.candidates().wanted);
    for (int64_t part = 0; part < row.score_parts().number(); ++part) {
      for (const BlockSelector::Entry& entry : row.selected[part]) selector.offer(entry.block, entry.score);
    }
    row.row.select(selector.finish());
  }
  return success();
}

}  // namespace

RowView::RowView(const Plan& plan, const InfLLMv2AttentionTensors& tensors, int64_t batch, int64_t kv_head)
    : plan_(&plan) {
  const InfLLMv2AttentionSizes& sizes = plan.sizes;
  const int64_t head = batch * sizes.num_kv_heads + kv_head;
  const int64_t dim = sizes.head_dim;
  const auto rows_of = [&](const void* cache, int64_t capacity) {
    return static_cast<const char*>(cache) + head * capacity * plan.row_bytes;
  };
  keys_ = {rows_of(tensors.k_cache_out, sizes.C), rows_of(tensors.v_cache_out, sizes.C),
           rows_of(tensors.k1_cache_out, sizes.C1), rows_of(tensors.k2_cache_out, sizes.C2)};
  const int64_t width = sizes.num_heads * dim;
  const int64_t packed_width = 2 * (sizes.num_heads + sizes.num_kv_heads) * dim;
  q_ = tensors.qkvg + batch * sizes.T * packed_width + kv_head * plan.heads * dim;
  gate_ = q_ + width + 2 * sizes.num_kv_heads * dim;
  y_ = tensors.y + batch * sizes.T * width + kv_head * plan.heads * dim;
  past_length_ = tensors.past_length[batch];
  is_sparse_ = tensors.context_length[batch] >= sizes.dense_len;
}

void RowView::start(QueryRow& row, int64_t token) const {
  const int64_t packed_width = 2 * (plan_->sizes.num_heads + plan_->sizes.num_kv_heads) * plan_->sizes.head_dim;
  row.start(keys_, q_ + token * packed_width, past_length_ + token, is_sparse_);
}

void RowView::finish(const QueryRow& row, int64_t token, SoftmaxSum sum) const {
  const int64_t dim = plan_->sizes.head_dim;
  const int64_t packed_width = 2 * (plan_->sizes.num_heads + plan_->sizes.num_kv_heads) * dim;
  plan_->kernels.finish(row.group(), sum, gate_ + token * packed_width, y_ + token * plan_->sizes.num_heads * dim);
}

Status run_prefill(const Plan& plan, const InfLLMv2AttentionTensors& tensors, const cpu::ParallelFor& parallel) {
  const InfLLMv2AttentionSizes& sizes = plan.sizes;
  const int64_t tiles = (sizes.T + kTileTokens - 1) / kTileTokens;
  const int64_t floats = Tile(plan, nullptr).floats();
  return cpu::parallel_for_with_scratch(
      parallel, sizes.B * sizes.num_kv_heads * tiles, floats, [&](int64_t i, float* scratch) {
        const int64_t head = i / tiles;
        const int64_t first = i % tiles * kTileTokens;
        Tile tile(plan, scratch);
        tile.run(RowView(plan, tensors, head / sizes.num_kv_heads, head % sizes.num_kv_heads), first,
                 std::min(kTileTokens, sizes.T - first));
      });
}

Status run_decode(const Plan& plan, const InfLLMv2AttentionTensors& tensors, const cpu::ParallelFor& parallel) {
  const InfLLMv2AttentionSizes& sizes = plan.sizes;
  const int64_t count = sizes.B * sizes.num_kv_heads * sizes.T;
  Arena counter(nullptr);
  SplitRow(plan, counter);
  const cpu::FloatBuffer memory = cpu::allocate_floats(count * counter.used());
  if (memory == nullptr) return error("InfLLMv2Attention: out of memory for ", count, " rows");
  Arena arena(memory.get());
  std::vector<SplitRow> rows;
  rows.reserve(static_cast<size_t>(count));
  const auto view_of = [&](int64_t i) {
    const int64_t head = i / sizes.T;
    return RowView(plan, tensors, head / sizes.num_kv_heads, head % sizes.num_kv_heads);
  };
  for (int64_t i = 0; i < count; ++i) {
    view_of(i).start(rows.emplace_back(plan, arena).row, i % sizes.T);
  }
  SALA_RETURN_IF_ERROR(select_blocks(plan, rows, parallel));
  SALA_RETURN_IF_ERROR(for_parts(
      plan, rows, parallel, [](const SplitRow& row) { return row.attend_parts(); },
      [&](SplitRow& row, int64_t part, float*, float* scores) {
        const Parts parts = row.attend_parts();
        clear(plan, row.sums[part]);
        const BlockList& blocks = row.row.blocks();
        for (int64_t at = parts.first(part); at < parts.last(part); ++at) {
          row.row.prefetch_values(blocks.at(at));
          if (at + 1 < parts.last(part)) row.row.prefetch_keys(blocks.at(at + 1));
          row.row.attend(blocks.at(at), row.sums[part], scores);
        }
      }));
  for (int64_t i = 0; i < count; ++i) {
    SplitRow& row = rows[static_cast<size_t>(i)];
    merge_parts(plan, row, row.attend_parts(), true);
    view_of(i).finish(row.row, i % sizes.T, row.sums[0]);
  }
  return success();
}

}  // namespace sala::ops
