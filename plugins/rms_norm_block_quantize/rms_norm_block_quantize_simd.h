// The part of RMSNormBlockQuantize that is compiled once per SIMD level.

#pragma once

#include "cpu/simd_level.h"
#include "rms_norm_block_quantize/rms_norm_block_quantize_contract.h"

namespace sala::ops {

struct RMSNormBlockQuantizeKernels {
  /// Row `row` of all B * T.
  void (*norm_row)(const RMSNormBlockQuantizeSizes& sizes, const RMSNormBlockQuantizeTensors& tensors, int64_t row);
};

#define SALA_DECLARE(level, name)                                        \
  namespace name {                                                       \
  extern const RMSNormBlockQuantizeKernels kRMSNormBlockQuantizeKernels; \
  }
SALA_FOR_EACH_SIMD_LEVEL(SALA_DECLARE)
#undef SALA_DECLARE

}  // namespace sala::ops
