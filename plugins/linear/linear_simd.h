// The parts of a product that are compiled once per SIMD level.

#pragma once

#include <cstdint>

#include "cpu/simd_level.h"
#include "linear/linear_cpu.h"

namespace sala::linear {

/// One row of a stored weight, and the scales of its row of blocks.
struct Row {
  const uint8_t* codes;
  const void* scales;
  ScaleType scale_type;
  int64_t scale_columns;  // columns that share a scale
};

/// What the kernels need to know of a call.
struct Product {
  WeightKind kind;
  float global_scale;
  bool round_inputs;  // x to bfloat16
  int64_t columns;
  int64_t tokens;
};

struct LinearKernels {
  /// Rounds `count` numbers to bfloat16, kept as float32.
  void (*round_inputs)(const float* x, int64_t count, float* rounded);
  /// out[row * tokens + token] = x[token] . weights of the row; scratch has `columns` floats.
  void (*rows)(const Product& product, const float* x, const Row* rows, int64_t count, float* scratch, float* out);
  /// y[i] = u[i] sigmoid(u[i]) v[i].
  void (*silu_mul)(const float* u, const float* v, int64_t count, float* y);
};

#define SALA_DECLARE(level, name)            \
  namespace name {                           \
  extern const LinearKernels kLinearKernels; \
  }
SALA_FOR_EACH_SIMD_LEVEL(SALA_DECLARE)
#undef SALA_DECLARE

}  // namespace sala::linear
