// The parts of InfLLMv2Attention that are compiled once per SIMD level.
//
// Vectors run over the query heads of one key head: they share every key, and a maximum or sum over keys needs no
// exchange between lanes. Scores are in units of log 2, so that 2^x replaces e^x.
//
// D head_dim, R query heads per key head, C = R rounded up to whole vectors.

#pragma once

#include <cstdint>

#include "cpu/simd_level.h"

namespace sala::ops {

constexpr int64_t kMaxGroupHeads = 128;  // a multiple of every level's lanes

/// The query heads of one token that share a key head.
struct QueryGroup {
  const float* q;    // as pack_queries left it
  float factor;      // on the scores
  int64_t heads;     // R
  int64_t columns;   // C
  int64_t head_dim;  // D
};

/// A running softmax-weighted sum of values. Starts with maximum = -inf and zeros.
struct SoftmaxSum {
  float* maximum;  // [C]
  float* total;    // [C], sum of 2^(score - maximum)
  float* o;        // [R, D], sum of 2^(score - maximum) value; null if only the total is wanted
};

/// The kernels of one SIMD level for caches of one type. Keys and values are numbers of that type.
struct InfLLMv2Kernels {
  int64_t lanes;
  int64_t cache_bytes;  // of a number in a cache

  /// to [count] = from [count], rounded to nearest, ties to even. `count` is a multiple of 16.
  void (*append)(const float* from, int64_t count, void* to);

  /// q [R, D] as the other kernels want it, transposed and padded by columns of zeros, into [D, C]. The factor may be
  /// applied here or by them.
  void (*pack_queries)(const float* q, int64_t heads, int64_t head_dim, int64_t columns, float factor, float* packed);

  /// Adds `count` keys [count, D] to the sum, and values [count, D] unless they are null. `scores` is scratch
  /// [count, C].
  void (*accumulate)(const QueryGroup& group, const void* keys, const void* values, int64_t count, SoftmaxSum sum,
                     float* scores);

  /// p[i] = min(sum over heads of 2^(score_i - maximum) * inverse_total, largest float). `scores` as above.
  void (*probabilities)(const QueryGroup& group, const void* keys, int64_t count, const float* maximum,
                        const float* inverse_total, float* p, float* scores);

  /// Adds a sum over other keys to `into`; both have values or none has.
  void (*merge)(const QueryGroup& group, SoftmaxSum into, SoftmaxSum from);

  /// y = o / total * sigmoid(gate), all [R, D].
  void (*finish)(const QueryGroup& group, SoftmaxSum sum, const float* gate, float* y);

  /// out [D] = mean of `count` rows [count, D].
  void (*mean)(const void* rows, int64_t count, int64_t head_dim, void* out);
};

/// The kernels of one SIMD level.
struct InfLLMv2KernelSet {
  InfLLMv2Kernels float32;
  InfLLMv2Kernels bfloat16;
  InfLLMv2Kernels float16;
};

#define SALA_DECLARE(level, name)                  \
  namespace name {                                 \
  extern const InfLLMv2KernelSet kInfLLMv2Kernels; \
  }
SALA_FOR_EACH_SIMD_LEVEL(SALA_DECLARE)
#undef SALA_DECLARE

}  // namespace sala::ops
