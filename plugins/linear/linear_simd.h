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
  bool round_inputs;  // x to bfloat16
  float global_scale;
  int64_t columns;
  int64_t scale_columns;  // of all rows; 0 if they differ
};

/// How a level packs inputs: 32-bit slots of one number or two.
struct Layout {
  int64_t slots;        // of one token
  int64_t tile_tokens;  // tokens of a tile, for many tokens
  int64_t panel_rows;   // weight rows of a panel
};

/// Inputs of `pack`, which works on slots [first_slot, last_slot), both multiples of kPackedSlots or the end.
struct Inputs {
  const float* x;  // [tokens, columns]
  int64_t tokens;  // not more than the tile's; the rest becomes 0
  int64_t first_slot;
  int64_t last_slot;
};

constexpr int64_t kPackedSlots = 256;

struct LinearKernels {
  Layout (*layout)(const Product& product);
  /// tile[slot * tile_tokens + token] = the inputs, in the order of the product's numbers.
  void (*pack)(const Product& product, const Inputs& inputs, int64_t tile_tokens, float* tile);
  /// Floats of scratch for `few`.
  int64_t (*few_scratch)(const Product& product);
  /// out[token * out_stride + row] for rows [0, count) and inputs that are packed in tiles of one token.
  void (*few)(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens,
              float* scratch, float* out, int64_t out_stride);
  /// Floats of scratch for `many`.
  int64_t (*many_scratch)(const Product& product, int64_t rows);
  /// out[token * rows + row] for a multiple of panel_rows rows and whole tiles of inputs.
  void (*many)(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens,
               float* scratch, float* out);
  /// y[i] = u[i] sigmoid(u[i]) v[i].
  void (*silu_mul)(const float* u, const float* v, int64_t count, float* y);
};

// Levels whose instructions these kernels gain by.
#if defined(__aarch64__)
#define SALA_FOR_EACH_LINEAR_LEVEL(M) \
  M(kBaseline, baseline)              \
  M(kNeonMatrix, neon_matrix)
#else
#define SALA_FOR_EACH_LINEAR_LEVEL(M) SALA_FOR_EACH_SIMD_LEVEL(M)
#endif

#define SALA_DECLARE(level, name)            \
  namespace name {                           \
  extern const LinearKernels kLinearKernels; \
  }
SALA_FOR_EACH_LINEAR_LEVEL(SALA_DECLARE)
#undef SALA_DECLARE

}  // namespace sala::linear
