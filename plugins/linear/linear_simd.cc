#include "linear/linear_simd.h"

#include "cpu/simd.h"
#include "linear/numbers.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

float rounded_to_bfloat16(float value) {
  const auto bits = __builtin_bit_cast(uint32_t, value);
  if (value != value) return value;
  return float_of_bits((bits + 0x7FFFU + (bits >> 16 & 1U)) & 0xFFFF0000U);
}

void round_inputs(const float* x, int64_t count, float* rounded) {
  for (int64_t i = 0; i < count; ++i) rounded[i] = rounded_to_bfloat16(x[i]);
}

void expand(const Product& product, const Row& row, float* numbers) {
  for (int64_t first = 0; first < product.columns; first += row.scale_columns) {
    const float scale = scale_at(row.scale_type, row.scales, first / row.scale_columns) * product.global_scale;
    for (int64_t k = first; k < first + row.scale_columns; ++k) {
      numbers[k] = number_at(product.kind, row.codes, k) * scale;
    }
  }
}

float dot(const float* a, const float* b, int64_t count) {
  Vec sums{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sums += load(a + i) * load(b + i);
  float total = sum(sums);
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

void rows(const Product& product, const float* x, const Row* row, int64_t count, float* scratch, float* out) {
  for (int64_t r = 0; r < count; ++r) {
    expand(product, row[r], scratch);
    for (int64_t t = 0; t < product.tokens; ++t) {
      out[r * product.tokens + t] = dot(x + t * product.columns, scratch, product.columns);
    }
  }
}

void silu_mul(const float* u, const float* v, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, load(u + i) * sigmoid(load(u + i)) * load(v + i));
  for (; i < count; ++i) y[i] = u[i] * sigmoid(broadcast(u[i]))[0] * v[i];
}

}  // namespace

extern const LinearKernels kLinearKernels{round_inputs, rows, silu_mul};

}  // namespace sala::linear::SALA_SIMD_LEVEL
