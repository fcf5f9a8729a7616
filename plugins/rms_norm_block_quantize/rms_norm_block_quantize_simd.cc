#include "rms_norm_block_quantize/rms_norm_block_quantize_simd.h"

#include <math.h>

#include "cpu/block_scales.h"

namespace sala::ops::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

double sum_of_squares(const float* x, int64_t count) {
  double total = 0;
  for (int64_t first = 0; first < count; first += cpu::kWordNumbers) {
    Vec part{};
    for (int64_t i = first; i < first + cpu::kWordNumbers; i += kLanes) part += load(x + i) * load(x + i);
    total += static_cast<double>(sum(part));
  }
  return total;
}

void norm_row(const RMSNormBlockQuantizeSizes& sizes, const RMSNormBlockQuantizeTensors& tensors, int64_t row) {
  const float* x = tensors.x + row * sizes.columns;
  uint8_t* codes = tensors.codes + row * sizes.columns;
  int32_t* word = tensors.scales + row;
  const double mean_square = sum_of_squares(x, sizes.columns) / static_cast<double>(sizes.columns);
  const float norm = 1.0f / sqrtf(static_cast<float>(mean_square) + sizes.eps);
  for (int64_t first = 0; first < sizes.columns; first += cpu::kWordNumbers) {
    float normed[cpu::kWordNumbers];
    for (int64_t i = 0; i < cpu::kWordNumbers; i += kLanes) {
      store(normed + i, load(x + first + i) * norm * load(tensors.weight + first + i));
    }
    *word = quantize_word(normed, codes + first);
    word += sizes.B * sizes.T;
  }
}

}  // namespace

extern const RMSNormBlockQuantizeKernels kRMSNormBlockQuantizeKernels{norm_row};

}  // namespace sala::ops::SALA_SIMD_LEVEL
