#include "linear/int4_plain.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "linear/numbers.h"

namespace sala::linear {
namespace {

constexpr int64_t kLongestGroup = 128;

/// One token's inputs, in groups of `group` columns of which the last may be shorter.
struct Codes {
  Codes(const float* x, int64_t columns, int64_t group) : codes(static_cast<size_t>(columns)) {
    for (int64_t first = 0; first < columns; first += group) add_group(x, first, std::min(first + group, columns));
  }

  void add_group(const float* x, int64_t first, int64_t last) {
    float largest = 0.0f;
    for (int64_t k = first; k < last; ++k) {
      // A NaN is larger than all, so that the scale and the sum become NaN.
      if (std::fabs(x[k]) > largest || std::isnan(x[k])) largest = std::fabs(x[k]);
      if (std::isnan(largest)) break;
    }
    const float scale = largest / 127.0f;
    scales.push_back(scale);
    if (!(scale > 0.0f) || std::isinf(scale)) return;  // codes stay 0: zero, or 0 times what is not finite, NaN
    for (int64_t k = first; k < last; ++k) codes[static_cast<size_t>(k)] = std::nearbyint(x[k] / scale);
  }

  std::vector<float> codes;
  std::vector<float> scales;
};

float dot(const Codes& x, const StoredWeight& weight, int64_t row, int64_t columns, int64_t group) {
  const auto* codes = static_cast<const uint8_t*>(weight.codes) + row * (columns / 2);
  const int64_t scale_row = row / (weight.rows / weight.row_blocks) * weight.column_blocks;
  const int64_t scale_columns = columns / weight.column_blocks;
  float total = 0.0f;
  for (int64_t first = 0, i = 0; first < columns; first += group, ++i) {
    int32_t products = 0;
    for (int64_t k = first; k < std::min(first + group, columns); ++k) {
      const auto code = static_cast<int32_t>(number_at(WeightKind::kInt4, codes, k));
      products += code * static_cast<int32_t>(x.codes[static_cast<size_t>(k)]);
    }
    const float scale = scale_at(weight.scale_type, weight.scales, scale_row + first / scale_columns);
    total += static_cast<float>(products) * (scale * x.scales[static_cast<size_t>(i)]);
  }
  return total;
}

/// Columns of a group: as many as share a scale of the weight, or a part of them of at most kLongestGroup.
int64_t group_of(const StoredWeight& weight, int64_t columns) {
  const int64_t scale_columns = columns / weight.column_blocks;
  for (int64_t group = std::min(scale_columns, kLongestGroup); group > 1; --group) {
    if (scale_columns % group == 0) return group;
  }
  return 1;
}

}  // namespace

Status int4_plain(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel) {
  int64_t width = 0;
  for (const StoredWeight& weight : call.weights) width += weight.rows;
  const int64_t out_columns = call.silu_mul ? width / 2 : width;
  cpu::parallel_for(parallel, call.tokens, [&](int64_t token) {
    std::vector<float> products;
    for (const StoredWeight& weight : call.weights) {
      const int64_t group = group_of(weight, call.columns);
      const Codes codes(call.x + token * call.columns, call.columns, group);
      for (int64_t row = 0; row < weight.rows; ++row) {
        products.push_back(dot(codes, weight, row, call.columns, group) * call.global_scale);
      }
    }
    for (int64_t i = 0; i < out_columns; ++i) {
      const float u = products[static_cast<size_t>(i)];
      const float y = call.silu_mul ? u / (1.0f + std::exp(-u)) * products[static_cast<size_t>(out_columns + i)] : u;
      call.y[token * out_columns + i] = y;
    }
  });
  return success();
}

}  // namespace sala::linear
