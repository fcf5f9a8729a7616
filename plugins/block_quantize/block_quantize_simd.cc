#include "block_quantize/block_quantize_simd.h"

#include "cpu/block_scales.h"

namespace sala::ops::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

void quantize_row(const BlockQuantizeSizes& sizes, const BlockQuantizeTensors& tensors, int64_t row) {
  const float* x = tensors.x + row * sizes.columns * (1 + sizes.gated);
  uint8_t* codes = tensors.codes + row * sizes.columns;
  int32_t* word = tensors.scales + row;
  for (int64_t first = 0; first < sizes.columns; first += cpu::kWordNumbers) {
    const float* numbers = x + first;
    float products[cpu::kWordNumbers];
    if (sizes.gated != 0) {
      for (int64_t i = 0; i < cpu::kWordNumbers; i += kLanes) {
        const Vec gate = load(numbers + i);
        store(products + i, gate * sigmoid(gate) * load(numbers + sizes.columns + i));
      }
      numbers = products;
    }
    *word = quantize_word(numbers, codes + first);
    word += sizes.B * sizes.T;
  }
}

}  // namespace

extern const BlockQuantizeKernels kBlockQuantizeKernels{quantize_row};

}  // namespace sala::ops::SALA_SIMD_LEVEL
