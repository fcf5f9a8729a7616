// Quantised weights as fp32: `code * scale * global_scale`, each block of a weight with its own scale.

#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "bundle/codes.h"
#include "bundle/manifest.h"

namespace sala {

/// Elements that the tensor `codes` holds; -1 if its bytes are no whole number of rows, or the scales are of no type
/// that these codes have, or not one for each of equal blocks.
int64_t quantized_elements(const Dequantization& how, const StoredTensor& codes, const StoredTensor& scales);

/// Goes through the elements of a tensor that `quantized_elements` has counted, row by row.
class Dequantizer {
 public:
  /// `scales` are the bytes of the tensor of scales.
  Dequantizer(const Dequantization& how, const StoredTensor& codes, const StoredTensor& scales, std::string bytes);

  /// The next `count` elements; from codes that begin a byte.
  void dequantize(const uint8_t* codes, int64_t count, float* to);

 private:
  void begin_row();

  const CodeFormat& format_;
  DType scale_type_;
  float global_scale_;
  int64_t columns_;
  int64_t rows_per_scale_;
  int64_t columns_per_scale_;
  std::string scales_;
  std::array<float, 256> table_;  // the number of each code
  int64_t row_ = 0;
  int64_t column_ = 0;
  std::vector<float> row_scales_;  // those of the current row, times the global scale
};

}  // namespace sala
