// The part of BlockQuantize that is compiled once per SIMD level.

#pragma once

#include "block_quantize/block_quantize_contract.h"
#include "cpu/simd_level.h"

namespace sala::ops {

struct BlockQuantizeKernels {
  /// Row `row` of all B * T.
  void (*quantize_row)(const BlockQuantizeSizes& sizes, const BlockQuantizeTensors& tensors, int64_t row);
};

#define SALA_DECLARE(level, name)                          \
  namespace name {                                         \
  extern const BlockQuantizeKernels kBlockQuantizeKernels; \
  }
SALA_FOR_EACH_SIMD_LEVEL(SALA_DECLARE)
#undef SALA_DECLARE

}  // namespace sala::ops
