#include "infllmv2_attention/infllmv2_attention_simd.h"

#include <float.h>

#include "cpu/bfloat16_matmul.h"
#include "cpu/matmul.h"
#include "cpu/short_floats.h"
#include "cpu/simd.h"

namespace sala::ops::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;
using cpu::BFloat16;
using cpu::Float16;

/// A cache of bfloat16 has products of bfloat16, as on a GPU: queries and weights are rounded to it, sums are not.
template <class Number>
constexpr bool kRoundsInputs = false;
template <>
constexpr bool kRoundsInputs<BFloat16> = true;

template <class Number>
void append(const float* from, int64_t count, void* to) {
  for (int64_t i = 0; i < count; i += kLanes) store(static_cast<Number*>(to) + i, load(from + i));
}

template <class Number>
void pack_queries(const float* q, int64_t heads, int64_t head_dim, int64_t columns, float factor, float* packed) {
  transpose(q, head_dim, heads, head_dim, packed, columns);
  for (int64_t d = 0; d < head_dim; ++d) {
    float* row = packed + d * columns;
    for (int64_t column = heads; column < columns; ++column) row[column] = 0.0f;
    for (int64_t column = 0; column < columns; column += kLanes) {
      const Vec value = load(row + column);
      store(row + column, kRoundsInputs<Number> ? as_bfloat16(value) : value * factor);
    }
  }
}

void product(const QueryGroup& group, const float* keys, int64_t count, float* scores) {
  matmul({keys, group.head_dim, 1}, {group.q, group.columns}, scores, group.columns, count, group.columns,
         group.head_dim);
}

constexpr int64_t kWideRows = 32;
constexpr int64_t kWideDims = 128;

/// Some rows of a cache as floats: few enough to stay in the cache next to the core.
struct WideRows {
  float numbers[kWideRows * kWideDims];

  template <class Number>
  WideRows(const Number* from, int64_t stride, int64_t rows, int64_t dims) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < dims; i += kLanes) store(numbers + row * kWideDims + i, load(from + row * stride + i));
    }
  }
};

/// Calls body(first row, rows, first dimension, dimensions) for every part of [count, head_dim] that WideRows holds.
template <class Body>
void for_wide_parts(int64_t count, int64_t head_dim, Body body) {
  for (int64_t row = 0; row < count; row += kWideRows) {
    for (int64_t d = 0; d < head_dim; d += kWideDims) {
      body(row, count - row < kWideRows ? count - row : kWideRows, d,
           head_dim - d < kWideDims ? head_dim - d : kWideDims);
    }
  }
}

constexpr float kOne = 1.0f;

template <class Number>
void product(const QueryGroup& group, const Number* keys, int64_t count, float* scores) {
  for_wide_parts(count, group.head_dim, [&](int64_t row, int64_t rows, int64_t d, int64_t dims) {
    const WideRows wide(keys + row * group.head_dim + d, group.head_dim, rows, dims);
    matmul({wide.numbers, kWideDims, 1}, {group.q + d * group.columns, group.columns}, scores + row * group.columns,
           group.columns, rows, group.columns, dims, {d == 0 ? nullptr : &kOne, 0});
  });
}

/// o = o * corrections + weights^T values, for weights [count, C].
void add_values(const QueryGroup& group, float* weights, const float* values, int64_t count, const float* corrections,
                float* o) {
  matmul({weights, 1, group.columns}, {values, group.head_dim}, o, group.head_dim, group.heads, group.head_dim, count,
         {corrections, 1});
}

/// The same for values of 16 bits. May overwrite the weights.
template <class Number>
void add_values(const QueryGroup& group, float* weights, const Number* values, int64_t count, const float* corrections,
                float* o) {
  if constexpr (kRoundsInputs<Number>) {
    for (int64_t i = 0; i < count * group.columns; i += kLanes) store(weights + i, as_bfloat16(load(weights + i)));
  }
  for_wide_parts(count, group.head_dim, [&](int64_t row, int64_t rows, int64_t d, int64_t dims) {
    const WideRows wide(values + row * group.head_dim + d, group.head_dim, rows, dims);
    matmul({weights + row * group.columns, 1, group.columns}, {wide.numbers, kWideDims}, o + d, group.head_dim,
           group.heads, dims, rows, row == 0 ? Keep{corrections, 1} : Keep{&kOne, 0});
  });
}

#if defined(__AVX512BF16__)
template <>
void pack_queries<BFloat16>(const float* q, int64_t heads, int64_t head_dim, int64_t columns, float, float* packed) {
  transpose(q, head_dim, heads, head_dim, packed, columns);
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int64_t column = heads; column < columns; ++column) packed[d * columns + column] = 0.0f;
  }
  pair_rows_in_place(packed, columns, head_dim, columns);
}

template <>
void product(const QueryGroup& group, const BFloat16* keys, int64_t count, float* scores) {
  pair_matmul({keys, 2 * group.head_dim, 4}, PairedRows{group.q, group.columns}, scores, group.columns, count,
              group.columns, group.head_dim / 2);
}

template <>
void add_values(const QueryGroup& group, float* weights, const BFloat16* values, int64_t count,
                const float* corrections, float* o) {
  pair_rows_in_place(weights, group.columns, count, group.columns);
  pair_matmul({weights, 4, 4 * group.columns}, PlainRows{values, group.head_dim, count}, o, group.head_dim, group.heads,
              group.head_dim, (count + 1) / 2, {corrections, 1});
}
#endif

template <class Number>
void score(const QueryGroup& group, const Number* keys, int64_t count, float* scores) {
  product(group, keys, count, scores);
  if constexpr (kRoundsInputs<Number>) {
    for (int64_t i = 0; i < count * group.columns; i += kLanes) store(scores + i, load(scores + i) * group.factor);
  }
}

/// Turns a column of scores into 2^(score - maximum) and updates the running maximum and total. Returns what earlier
/// terms have to be multiplied with.
Vec exponentiate(float* scores, int64_t stride, int64_t count, float* maximum, float* total) {
  const Vec before = load(maximum);
  Vec highest = before;
  for (int64_t i = 0; i < count; ++i) highest = max(highest, load(scores + i * stride));
  const Vec correction = exp2(before - highest);
  Vec added{};
  for (int64_t i = 0; i < count; ++i) {
    const Vec weight = exp2(load(scores + i * stride) - highest);
    store(scores + i * stride, weight);
    added += weight;
  }
  store(maximum, highest);
  store(total, load(total) * correction + added);
  return correction;
}

template <class Number>
void accumulate(const QueryGroup& group, const void* keys, const void* values, int64_t count, SoftmaxSum sum,
                float* scores) {
  score(group, static_cast<const Number*>(keys), count, scores);
  float corrections[kMaxGroupHeads];
  for (int64_t column = 0; column < group.columns; column += kLanes) {
    const Vec correction =
        exponentiate(scores + column, group.columns, count, sum.maximum + column, sum.total + column);
    store(corrections + column, correction);
  }
  if (values == nullptr) return;
  add_values(group, scores, static_cast<const Number*>(values), count, corrections, sum.o);
}

template <class Number>
void probabilities(const QueryGroup& group, const void* keys, int64_t count, const float* maximum,
                   const float* inverse_total, float* p, float* scores) {
  score(group, static_cast<const Number*>(keys), count, scores);
  for (int64_t i = 0; i < count; ++i) {
    Vec heads{};
    for (int64_t column = 0; column < group.columns; column += kLanes) {
      heads += exp2(load(scores + i * group.columns + column) - load(maximum + column)) * load(inverse_total + column);
    }
    const float total = cpu::SALA_SIMD_LEVEL::sum(heads);
    p[i] = total < FLT_MAX ? total : FLT_MAX;
  }
}

void merge(const QueryGroup& group, SoftmaxSum into, SoftmaxSum from) {
  float keep[kMaxGroupHeads];
  float add[kMaxGroupHeads];
  for (int64_t column = 0; column < group.columns; column += kLanes) {
    const Vec a = load(into.maximum + column);
    const Vec b = load(from.maximum + column);
    const Vec highest = max(a, b);
    const Vec keep_factor = exp2(a - highest);
    const Vec add_factor = exp2(b - highest);
    store(into.maximum + column, highest);
    store(into.total + column, load(into.total + column) * keep_factor + load(from.total + column) * add_factor);
    store(keep + column, keep_factor);
    store(add + column, add_factor);
  }
  if (into.o == nullptr) return;
  for (int64_t head = 0; head < group.heads; ++head) {
    float* o = into.o + head * group.head_dim;
    const float* other = from.o + head * group.head_dim;
    for (int64_t d = 0; d < group.head_dim; d += kLanes)
      store(o + d, load(o + d) * keep[head] + load(other + d) * add[head]);
  }
}

void finish(const QueryGroup& group, SoftmaxSum sum, const float* gate, float* y) {
  for (int64_t head = 0; head < group.heads; ++head) {
    const int64_t row = head * group.head_dim;
    const float inverse = 1.0f / sum.total[head];
    for (int64_t d = row; d < row + group.head_dim; d += kLanes) {
      store(y + d, load(sum.o + d) * inverse * sigmoid(load(gate + d)));
    }
  }
}

template <class Number>
void mean(const void* rows, int64_t count, int64_t head_dim, void* out) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    const Number* column = static_cast<const Number*>(rows) + d;
    Vec total{};
    for (int64_t row = 0; row < count; ++row) total += load(column + row * head_dim);
    store(static_cast<Number*>(out) + d, total / static_cast<float>(count));
  }
}

template <class Number>
constexpr InfLLMv2Kernels kernels_for() {
  return {kLanes, sizeof(Number), append<Number>, pack_queries<Number>, accumulate<Number>, probabilities<Number>,
          merge,  finish,         mean<Number>};
}

}  // namespace

extern const InfLLMv2KernelSet kInfLLMv2Kernels{kernels_for<float>(), kernels_for<BFloat16>(), kernels_for<Float16>()};

}  // namespace sala::ops::SALA_SIMD_LEVEL
