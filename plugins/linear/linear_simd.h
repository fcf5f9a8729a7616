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

/// Rows [first, first + count) of the weights of a call; where they end, the last one is repeated.
void rows_at(const LinearCall& call, int64_t first, int64_t count, Row* rows);

/// What the kernels need to know of a call.
struct Product {
  WeightKind kind;
  bool round_inputs;  // x to bfloat16, which holds the weights' numbers too
  float global_scale;
  int64_t columns;
  int64_t scale_columns;  // of all rows; 0 if they differ
};

/// How kernels of many tokens cut a product.
struct Layout {
  int64_t slots;        // of one token: 32 bits of one number or two
  int64_t tile_tokens;  // whose inputs are packed side by side
  int64_t panel_rows;   // weight rows are taken in multiples of it
  int64_t most_rows;    // at a time
  int64_t most_tokens;  // at a time; whole tiles
  int64_t few_tokens;   // up to so many are served by the kernels of few tokens
};

/// Inputs of `pack`, which works on slots [first_slot, last_slot), both multiples of kPackedSlots or the end.
struct Inputs {
  const float* x;  // [tokens, columns]
  int64_t tokens;  // not more than the tile's; the rest becomes 0
  int64_t first_slot;
  int64_t last_slot;
};

constexpr int64_t kPackedSlots = 256;

/// Where the products of some rows go, as columns of y. With silu_mul the rows are those of u and then those of v.
struct Output {
  float* y;         // of the first token and column
  int64_t stride;   // from token to token
  int64_t columns;  // that are written: not more than the rows, or half of them
  bool silu_mul;
};

/// tile[slot * tile_tokens + token] = the inputs, in the order of the product's numbers.
using Pack = void (*)(const Product& product, const Inputs& inputs, int64_t tile_tokens, float* tile);

/// Products of few tokens: bound by memory.
struct FewKernels {
  /// 32-bit slots of one token, whose inputs are packed as a tile of their own.
  int64_t (*slots)(const Product& product);
  Pack pack;
  /// Floats of scratch for `products`.
  int64_t (*scratch)(const Product& product);
  /// out[token * out_stride + row] for rows [0, count).
  void (*products)(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens,
                   float* scratch, float* out, int64_t out_stride);
};

/// Products of many tokens: bound by arithmetic.
struct ManyKernels {
  Layout (*layout)(const Product& product);
  Pack pack;
  /// Floats of scratch for `products`.
  int64_t (*scratch)(const Product& product, int64_t rows, int64_t tokens);
  /// Rows [0, count), a multiple of panel_rows, for inputs that are packed in tiles.
  void (*products)(const Product& product, const Row* rows, int64_t count, const float* packed, int64_t tokens,
                   float* scratch, const Output& out);
};

struct LinearKernels {
  FewKernels few;
  ManyKernels many;
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

#if defined(__x86_64__)
namespace amx {
/// Whether the tiles of bfloat16 serve a product.
bool takes(const Product& product);
extern const ManyKernels kManyKernels;
}  // namespace amx
#endif

}  // namespace sala::linear
