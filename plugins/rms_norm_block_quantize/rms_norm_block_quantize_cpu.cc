#include "rms_norm_block_quantize/rms_norm_block_quantize_cpu.h"

#include "rms_norm_block_quantize/rms_norm_block_quantize_simd.h"

namespace sala::ops {
namespace {

const RMSNormBlockQuantizeKernels& kernels_of(cpu::SimdLevel level) {
#define SALA_COMPILED(constant, name) {cpu::SimdLevel::constant, &name::kRMSNormBlockQuantizeKernels},
  return cpu::highest<RMSNormBlockQuantizeKernels>({SALA_FOR_EACH_SIMD_LEVEL(SALA_COMPILED)}, level);
#undef SALA_COMPILED
}

}  // namespace

Status rms_norm_block_quantize_cpu(const RMSNormBlockQuantizeSizes& sizes, const RMSNormBlockQuantizeTensors& tensors,
                                   const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  const RMSNormBlockQuantizeKernels& kernels = kernels_of(level);
  cpu::parallel_for_rows(parallel, sizes.B * sizes.T, [&](int64_t row) { kernels.norm_row(sizes, tensors, row); });
  return success();
}

}  // namespace sala::ops
