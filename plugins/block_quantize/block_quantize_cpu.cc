#include "block_quantize/block_quantize_cpu.h"

#include "block_quantize/block_quantize_simd.h"

namespace sala::ops {
namespace {

const BlockQuantizeKernels& kernels_of(cpu::SimdLevel level) {
  switch (level) {
#define SALA_CASE(constant, name) \
  case cpu::SimdLevel::constant:  \
    return name::kBlockQuantizeKernels;
    SALA_FOR_EACH_SIMD_LEVEL(SALA_CASE)
#undef SALA_CASE
    default:
      return baseline::kBlockQuantizeKernels;
  }
}

}  // namespace

Status block_quantize_cpu(const BlockQuantizeSizes& sizes, const BlockQuantizeTensors& tensors,
                          const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  const BlockQuantizeKernels& kernels = kernels_of(level);
  cpu::parallel_for_rows(parallel, sizes.B * sizes.T, [&](int64_t row) { kernels.quantize_row(sizes, tensors, row); });
  return success();
}

}  // namespace sala::ops
