#include "infllmv2_attention/infllmv2_attention_simd.h"

#include <float.h>

#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace sala::ops::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

void pack_queries(const float* q, int64_t heads, int64_t head_dim, int64_t columns, float factor, float* packed) {
  transpose(q, head_dim, heads, head_dim, packed, columns);
  for (int64_t d = 0; d < head_dim; ++d) {
    float* row = packed + d * columns;
    for (int64_t column = heads; column < columns; ++column) row[column] = 0.0f;
    for (int64_t column = 0; column < columns; column += kLanes) store(row + column, load(row + column) * factor);
  }
}

void score(const QueryGroup& group, const float* keys, int64_t count, float* scores) {
  matmul({keys, group.head_dim, 1}, {group.q, group.columns}, scores, group.columns, count, group.columns,
         group.head_dim);
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

void accumulate(const QueryGroup& group, const float* keys, const float* values, int64_t count, SoftmaxSum sum,
                float* scores) {
  score(group, keys, count, scores);
  float corrections[kMaxGroupHeads];
  for (int64_t column = 0; column < group.columns; column += kLanes) {
    const Vec correction =
        exponentiate(scores + column, group.columns, count, sum.maximum + column, sum.total + column);
    store(corrections + column, correction);
  }
  if (values == nullptr) return;
  matmul({scores, 1, group.columns}, {values, group.head_dim}, sum.o, group.head_dim, group.heads, group.head_dim,
         count, {corrections, 1});
}

void probabilities(const QueryGroup& group, const float* keys, int64_t count, const float* maximum,
                   const float* inverse_total, float* p, float* scores) {
  score(group, keys, count, scores);
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

void mean(const float* rows, int64_t count, int64_t head_dim, float* out) {
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    Vec total{};
    for (int64_t row = 0; row < count; ++row) total += load(rows + row * head_dim + d);
    store(out + d, total / static_cast<float>(count));
  }
}

}  // namespace

extern const InfLLMv2Kernels kInfLLMv2Kernels{kLanes, pack_queries, accumulate, probabilities, merge, finish, mean};

}  // namespace sala::ops::SALA_SIMD_LEVEL
