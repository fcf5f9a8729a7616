#include "linear/linear_cpu.h"

#include <algorithm>
#include <vector>

#include "linear/int4_plain.h"
#include "linear/linear_simd.h"

namespace sala::linear {
namespace {

const LinearKernels& kernels_of(cpu::SimdLevel level) {
  switch (level) {
#define SALA_CASE(constant, name) \
  case cpu::SimdLevel::constant:  \
    return name::kLinearKernels;
    SALA_FOR_EACH_SIMD_LEVEL(SALA_CASE)
#undef SALA_CASE
    default:
      return baseline::kLinearKernels;
  }
}

int64_t scale_bytes(ScaleType type) {
  switch (type) {
    case ScaleType::kNone:
      return 0;
    case ScaleType::kFloat32:
      return 4;
    case ScaleType::kBFloat16:
    case ScaleType::kFloat16:
      return 2;
    case ScaleType::kFloat8:
      return 1;
  }
  return 0;
}

int64_t bits_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::kFloat32:
      return 32;
    case WeightKind::kBFloat16:
    case WeightKind::kFloat16:
      return 16;
    case WeightKind::kFloat8:
    case WeightKind::kInt8:
      return 8;
    case WeightKind::kInt4:
    case WeightKind::kNvfp4:
      return 4;
  }
  return 0;
}

/// All rows of all weights, one after another.
std::vector<Row> rows_of(const LinearCall& call) {
  std::vector<Row> rows;
  for (const StoredWeight& weight : call.weights) {
    const int64_t bytes = row_bytes(call.kind, call.columns);
    const int64_t block_rows = weight.rows / weight.row_blocks;
    for (int64_t r = 0; r < weight.rows; ++r) {
      const int64_t first_scale = r / block_rows * weight.column_blocks;
      rows.push_back({static_cast<const uint8_t*>(weight.codes) + r * bytes,
                      static_cast<const uint8_t*>(weight.scales) + first_scale * scale_bytes(weight.scale_type),
                      weight.scale_type, call.columns / weight.column_blocks});
    }
  }
  return rows;
}

bool rounds_inputs(const LinearCall& call) {
  return !call.exact && call.kind != WeightKind::kFloat32 && call.kind != WeightKind::kFloat16;
}

}  // namespace

int64_t row_bytes(WeightKind kind, int64_t columns) { return columns * bits_of(kind) / 8; }

int64_t columns_of(WeightKind kind, int64_t bytes) { return bytes * 8 / bits_of(kind); }

Status linear_cpu(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  if (call.tokens == 0) return success();
  const LinearKernels& kernels = kernels_of(level);
  if (call.kind == WeightKind::kInt4 && !call.exact) return int4_plain(call, parallel, level);
  const std::vector<Row> rows = rows_of(call);
  cpu::FloatBuffer rounded;
  const float* x = call.x;
  if (rounds_inputs(call)) {
    rounded = cpu::allocate_floats(call.tokens * call.columns);
    if (rounded == nullptr) return error("Linear: out of memory for the rounded inputs");
    kernels.round_inputs(call.x, call.tokens * call.columns, rounded.get());
    x = rounded.get();
  }
  const Product product{call.kind, call.global_scale, rounds_inputs(call), call.columns, call.tokens};
  const int64_t out_columns = static_cast<int64_t>(rows.size()) / (call.silu_mul ? 2 : 1);
  return cpu::parallel_for_with_scratch(
      parallel, out_columns, call.columns + 2 * call.tokens, [&](int64_t column, float* scratch) {
        float* u = scratch + call.columns;
        float* v = u + call.tokens;
        kernels.rows(product, x, rows.data() + column, 1, scratch, u);
        if (call.silu_mul) {
          kernels.rows(product, x, rows.data() + out_columns + column, 1, scratch, v);
          kernels.silu_mul(u, v, call.tokens, u);
        }
        for (int64_t t = 0; t < call.tokens; ++t) call.y[t * out_columns + column] = u[t];
      });
}

}  // namespace sala::linear
