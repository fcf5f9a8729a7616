#include "linear/linear_cpu.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "linear/int4_fast.h"
#include "linear/linear_simd.h"
#include "linear/numbers.h"

namespace sala::linear {
namespace {

constexpr int64_t kMostRows = 1024;          // of an item
constexpr int64_t kMostFewRows = 128;        // of an item of few tokens
constexpr int64_t kBytesOfItem = 128 << 10;  // of weights, for few tokens

const LinearKernels& kernels_of(cpu::SimdLevel level) {
#define SALA_COMPILED(constant, name) {cpu::SimdLevel::constant, &name::kLinearKernels},
  return cpu::highest<LinearKernels>({SALA_FOR_EACH_LINEAR_LEVEL(SALA_COMPILED)}, level);
#undef SALA_COMPILED
}

const ManyKernels& many_kernels_of(const Product& product, cpu::SimdLevel level) {
#if defined(__x86_64__)
  if (level >= cpu::SimdLevel::kAmx && amx::takes(product)) return amx::kManyKernels;
#endif
  return kernels_of(level).many;
}

int64_t bits_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::kFloat32:
      return 32;
    case WeightKind::kBFloat16:
    case WeightKind::kFloat16:
      return 16;
    case WeightKind::kFloat8:
    case WeightKind::kMxfp8:
    case WeightKind::kInt8:
      return 8;
    case WeightKind::kInt4:
    case WeightKind::kNvfp4:
      return 4;
  }
  return 0;
}

bool rounds_inputs(const LinearCall& call) {
  return !call.exact && call.kind != WeightKind::kFloat32 && call.kind != WeightKind::kFloat16;
}

/// A call whose output columns are cut into items. An item computes the same columns of both halves for silu_mul.
class Job {
 public:
  Job(const LinearCall& call, cpu::SimdLevel level)
      : call_(call), kernels_(kernels_of(level)), many_(many_kernels_of(product_, level)) {
    for (const StoredWeight& weight : call.weights) width_ += weight.rows;
  }

  Status run(const cpu::ParallelFor& parallel) {
    if (call_.tokens <= layout_.few_tokens) return run_few(parallel);
    for (int64_t token = 0; token < call_.tokens; token += layout_.most_tokens) {
      SALA_RETURN_IF_ERROR(run_many(parallel, token, std::min(layout_.most_tokens, call_.tokens - token)));
    }
    return success();
  }

 private:
  int64_t halves() const { return call_.silu_mul ? 2 : 1; }
  int64_t out_columns() const { return width_ / halves(); }

  /// Columns that share a scale in all weights, or 0 if they differ.
  int64_t shared_scale_columns() const {
    const int64_t blocks = call_.weights.front().column_blocks;
    const bool is_same = std::all_of(call_.weights.begin(), call_.weights.end(),
                                     [&](const StoredWeight& weight) { return weight.column_blocks == blocks; });
    return is_same ? call_.columns / blocks : 0;
  }

  /// Packs `tokens` inputs of `slots` slots in tiles.
  Status pack(const cpu::ParallelFor& parallel, Pack kernel, int64_t token, int64_t tokens, int64_t slots,
              int64_t tile_tokens) {
    const int64_t tiles = (tokens + tile_tokens - 1) / tile_tokens;
    if (packed_ == nullptr) packed_ = cpu::allocate_floats(tiles * tile_tokens * slots);
    if (packed_ == nullptr) return error("Linear: out of memory for ", tokens, " packed inputs");
    const int64_t pieces = (slots + kPackedSlots - 1) / kPackedSlots;
    cpu::parallel_for(parallel, tiles * pieces, [&](int64_t item) {
      const int64_t first = item / pieces * tile_tokens;
      const int64_t slot = item % pieces * kPackedSlots;
      const Inputs inputs{call_.x + (token + first) * call_.columns, std::min(tile_tokens, tokens - first), slot,
                          std::min(slot + kPackedSlots, slots)};
      kernel(product_, inputs, tile_tokens, packed_.get() + first * slots);
    });
    return success();
  }

  Status run_few(const cpu::ParallelFor& parallel) {
    const FewKernels& kernels = kernels_.few;
    SALA_RETURN_IF_ERROR(pack(parallel, kernels.pack, 0, call_.tokens, kernels.slots(product_), 1));
    const int64_t fit = kBytesOfItem / std::max<int64_t>(row_bytes(call_.kind, call_.columns), 1) / 4 * 4;
    const int64_t columns = std::clamp<int64_t>(fit, 4, kMostFewRows / halves());
    const int64_t kernel_floats = kernels.scratch(product_);
    const int64_t scratch_floats = kernel_floats + 2 * call_.tokens * columns;
    const int64_t items = (out_columns() + columns - 1) / columns;
    return cpu::parallel_for_with_scratch(parallel, items, scratch_floats, [&](int64_t item, float* scratch) {
      Row rows[kMostFewRows];
      const int64_t first = item * columns;
      const int64_t count = std::min(columns, out_columns() - first);
      float* y = call_.y + first;
      rows_at(call_, first, count, rows);
      if (!call_.silu_mul) {
        kernels.products(product_, rows, count, packed_.get(), call_.tokens, scratch, y, out_columns());
        return;
      }
      float* u = scratch + kernel_floats;
      float* v = u + call_.tokens * columns;
      kernels.products(product_, rows, count, packed_.get(), call_.tokens, scratch, u, columns);
      rows_at(call_, out_columns() + first, count, rows);
      kernels.products(product_, rows, count, packed_.get(), call_.tokens, scratch, v, columns);
      for (int64_t t = 0; t < call_.tokens; ++t) {
        kernels_.silu_mul(u + t * columns, v + t * columns, count, y + t * out_columns());
      }
    });
  }

  /// Output columns of an item: many, so that tiles of inputs are read seldom, but enough items for all threads.
  int64_t columns_of_item() const {
    const int64_t items_wanted = 4 * static_cast<int64_t>(std::max(1U, std::thread::hardware_concurrency()));
    int64_t rows = std::min(layout_.most_rows, kMostRows);
    while (rows > 2 * layout_.panel_rows && rows * items_wanted > width_) rows /= 2;
    return rows / halves();
  }

  Status run_many(const cpu::ParallelFor& parallel, int64_t token, int64_t tokens) {
    SALA_RETURN_IF_ERROR(pack(parallel, many_.pack, token, tokens, layout_.slots, layout_.tile_tokens));
    const int64_t columns = columns_of_item();
    const int64_t rows_of_item = columns * halves();
    const int64_t items = (out_columns() + columns - 1) / columns;
    const int64_t scratch_floats = many_.scratch(product_, rows_of_item, tokens);
    return cpu::parallel_for_with_scratch(parallel, items, scratch_floats, [&](int64_t item, float* scratch) {
      Row rows[kMostRows];
      const int64_t first = item * columns;
      for (int64_t half = 0; half < halves(); ++half) {
        rows_at(call_, half * out_columns() + first, columns, rows + half * columns);
      }
      const Output out{call_.y + token * out_columns() + first, out_columns(), std::min(columns, out_columns() - first),
                       call_.silu_mul};
      many_.products(product_, rows, rows_of_item, packed_.get(), tokens, scratch, out);
    });
  }

  const LinearCall& call_;
  const Product product_{call_.kind, rounds_inputs(call_), call_.global_scale, call_.columns, shared_scale_columns()};
  const LinearKernels& kernels_;
  const ManyKernels& many_;
  const Layout layout_ = many_.layout(product_);
  int64_t width_ = 0;  // rows of W
  cpu::FloatBuffer packed_;
};

}  // namespace

int64_t row_bytes(WeightKind kind, int64_t columns) noexcept { return columns * bits_of(kind) / 8; }

void rows_at(const LinearCall& call, int64_t first, int64_t count, Row* rows) {
  const int64_t bytes = row_bytes(call.kind, call.columns);
  for (const StoredWeight& weight : call.weights) {
    if (first >= weight.rows) {
      first -= weight.rows;
      continue;
    }
    // Divisions take as long as a third of a row, so there are none for each.
    const int64_t block_rows = weight.rows / weight.row_blocks, scale_columns = call.columns / weight.column_blocks;
    const int64_t scales_stride = weight.column_blocks * scale_bytes(weight.scale_type);
    const auto* codes = static_cast<const uint8_t*>(weight.codes) + first * bytes;
    const auto* scales = static_cast<const uint8_t*>(weight.scales) + first / block_rows * scales_stride;
    int64_t rows_of_block = block_rows - first % block_rows;
    for (const Row* end = rows + std::min(count, weight.rows - first); rows < end; ++rows, codes += bytes, --count) {
      *rows = {codes, scales, weight.scale_type, scale_columns};
      if (--rows_of_block == 0) {
        scales += scales_stride;
        rows_of_block = block_rows;
      }
    }
    if (count == 0) return;
    first = 0;
  }
  std::fill_n(rows, count, rows[-1]);
}

int64_t columns_of(WeightKind kind, int64_t bytes) { return bytes * 8 / bits_of(kind); }

Status linear_cpu(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  const bool is_empty = std::all_of(call.weights.begin(), call.weights.end(),
                                    [](const StoredWeight& weight) { return weight.rows == 0; });
  if (call.tokens == 0 || is_empty) return success();
  if (call.kind == WeightKind::kInt4 && !call.exact) return int4_fast(call, parallel, level);
  return Job(call, level).run(parallel);
}

}  // namespace sala::linear
