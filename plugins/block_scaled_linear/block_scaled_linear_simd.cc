#include "block_scaled_linear/block_scaled_linear_simd.h"

#include "cpu/block_scales.h"
#include "cpu/matmul.h"
#include "linear/formats_simd.h"

namespace sala::ops::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

/// The numbers of `count` codes of a row; words of its scales lie `stride` apart. Exact: e4m3 times a power of two.
void decode(const uint8_t* codes, const int32_t* words, int64_t stride, int64_t count, float* numbers) {
  for (int64_t first = 0; first < count; first += cpu::kBlockNumbers) {
    const auto word = static_cast<uint32_t>(words[first / cpu::kWordNumbers * stride]);
    const float scale = scale_of_byte(word >> (first % cpu::kWordNumbers / cpu::kBlockNumbers * 8) & 0xFFU);
    for (int64_t i = first; i < first + cpu::kBlockNumbers; i += kLanes) {
      store(numbers + i, linear::SALA_SIMD_LEVEL::from_float8_codes(load_bytes(codes + i)) * scale);
    }
  }
}

void pack(const BlockScaledProduct& product, int64_t first, float* numbers, float* panel) {
  for (int64_t lane = 0; lane < kTileColumns; ++lane) {
    const int64_t row = first + lane;
    if (row >= product.rows) {
      for (int64_t k = 0; k < product.K; ++k) panel[k * kTileColumns + lane] = 0;
      continue;
    }
    decode(product.x + row * product.K, product.x_scales + row, product.rows, product.K, numbers);
    for (int64_t k = 0; k < product.K; ++k) panel[k * kTileColumns + lane] = numbers[k];
  }
}

/// Rounds once: what is added is added in float32.
void write(const BlockScaledProduct& product, int64_t first, int64_t count, const PackedRows& rows, const float* sums,
           int64_t stride) {
  for (int64_t r = 0; r < rows.count; ++r) {
    const int64_t at = (rows.first + r) * product.N + first;
    for (int64_t i = 0; i < count; ++i) {
      const float sum = sums[i * stride + r];
      product.y[at + i] = product.stream == nullptr ? sum : product.stream[at + i] + product.factor * sum;
    }
  }
}

void multiply(const BlockScaledProduct& product, int64_t first, int64_t count, const PackedRows& rows, float* scratch) {
  const int64_t padded = (rows.count + kLanes - 1) / kLanes * kLanes;
  float* weights = scratch;                                         // [outputs, depth]
  float* sums = weights + kBlockScaledOutputs * kBlockScaledDepth;  // [outputs, rows]
  const float one = 1.0f;
  for (int64_t k = 0; k < product.K; k += kBlockScaledDepth) {
    const int64_t depth = product.K - k < kBlockScaledDepth ? product.K - k : kBlockScaledDepth;
    for (int64_t i = 0; i < count; ++i) {
      decode(product.weight + (first + i) * product.K + k,
             product.weight_scales + k / cpu::kWordNumbers * product.N + first + i, product.N, depth,
             weights + i * kBlockScaledDepth);
    }
    const Keep keep{k == 0 ? nullptr : &one, 0};
    for (int64_t r = 0; r < padded; r += kTileColumns) {
      const Rows panel{rows.panels + r * product.K + k * kTileColumns, kTileColumns};
      const int64_t columns = padded - r < kTileColumns ? padded - r : kTileColumns;
      matmul({weights, kBlockScaledDepth, 1}, panel, sums + r, padded, count, columns, depth, keep);
    }
  }
  write(product, first, count, rows, sums, padded);
}

}  // namespace

extern const BlockScaledKernels kBlockScaledKernels{kTileColumns, pack, multiply};

}  // namespace sala::ops::SALA_SIMD_LEVEL
