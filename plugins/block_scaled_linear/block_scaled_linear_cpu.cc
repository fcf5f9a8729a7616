#include "block_scaled_linear/block_scaled_linear_cpu.h"

#include <algorithm>

#include "block_scaled_linear/block_scaled_linear_simd.h"

namespace sala::ops {
namespace {

constexpr int64_t kRowsOfBlock = 512;  // whose sums for the outputs of an item stay in the cache

const BlockScaledKernels& kernels_of(cpu::SimdLevel level) {
#define SALA_COMPILED(constant, name) {cpu::SimdLevel::constant, &name::kBlockScaledKernels},
  return cpu::highest<BlockScaledKernels>({SALA_FOR_EACH_SIMD_LEVEL(SALA_COMPILED)}, level);
#undef SALA_COMPILED
}

int64_t cdiv(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace

Status block_scaled_product(const BlockScaledProduct& product, const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  const BlockScaledKernels& kernels = kernels_of(level);
  const int64_t most_rows = std::min(kRowsOfBlock, cdiv(product.rows, kernels.panel_rows) * kernels.panel_rows);
  const cpu::FloatBuffer panels = cpu::allocate_floats(most_rows * product.K);
  if (panels == nullptr) return error("out of memory for ", most_rows, " rows of ", product.K, " numbers");
  for (int64_t row = 0; row < product.rows; row += kRowsOfBlock) {
    const PackedRows rows{row, std::min(kRowsOfBlock, product.rows - row), panels.get()};
    SALA_RETURN_IF_ERROR(cpu::parallel_for_with_scratch(
        parallel, cdiv(rows.count, kernels.panel_rows), product.K, [&](int64_t panel, float* numbers) {
          const int64_t first = panel * kernels.panel_rows;
          kernels.pack(product, row + first, numbers, panels.get() + first * product.K);
        }));
    SALA_RETURN_IF_ERROR(cpu::parallel_for_with_scratch(
        parallel, cdiv(product.N, kBlockScaledOutputs), block_scaled_scratch_floats(most_rows),
        [&](int64_t item, float* scratch) {
          const int64_t first = item * kBlockScaledOutputs;
          kernels.multiply(product, first, std::min(kBlockScaledOutputs, product.N - first), rows, scratch);
        }));
  }
  return success();
}

Status block_scaled_linear_cpu(const BlockScaledLinearSizes& sizes, const BlockScaledLinearTensors& tensors,
                               const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  const BlockScaledProduct product{
      tensors.x,         tensors.x_scales, tensors.weight, tensors.weight_scales, nullptr, 0, tensors.y,
      sizes.B * sizes.T, sizes.K,          sizes.N};
  return block_scaled_product(product, parallel, level);
}

}  // namespace sala::ops
