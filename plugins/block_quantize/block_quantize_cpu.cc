#include "block_quantize/block_quantize_cpu.h"

#include "block_quantize/block_quantize_simd.h"

namespace sala::ops {
namespace {

const BlockQuantizeKernels& kernels_of(cpu::SimdLevel level) {
#define SALA_COMPILED(constant, name) {cpu::SimdLevel::constant, &name::kBlockQuantizeKernels},
  return cpu::highest<BlockQuantizeKernels>({SALA_FOR_EACH_SIMD_LEVEL(SALA_COMPILED)}, level);
#undef SALA_COMPILED
}

}  // namespace

Status block_quantize_cpu(const BlockQuantizeSizes& sizes, const BlockQuantizeTensors& tensors,
                          const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  const BlockQuantizeKernels& kernels = kernels_of(level);
  cpu::parallel_for_rows(parallel, sizes.B * sizes.T, [&](int64_t row) { kernels.quantize_row(sizes, tensors, row); });
  return success();
}

}  // namespace sala::ops
