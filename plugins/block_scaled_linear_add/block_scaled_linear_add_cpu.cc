#include "block_scaled_linear_add/block_scaled_linear_add_cpu.h"

#include "block_scaled_linear/block_scaled_linear_cpu.h"

namespace sala::ops {

Status block_scaled_linear_add_cpu(const BlockScaledLinearAddSizes& sizes, const BlockScaledLinearAddTensors& tensors,
                                   const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  const BlockScaledProduct product{tensors.x,      tensors.x_scales, tensors.weight, tensors.weight_scales,
                                   tensors.stream, sizes.factor,     tensors.y,      sizes.B * sizes.T,
                                   sizes.K,        sizes.N};
  return block_scaled_product(product, parallel, level);
}

}  // namespace sala::ops
