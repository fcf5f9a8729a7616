// The parts of int4_fast that are compiled once per SIMD level.
//
// A group of at most 128 weights of a row lies in at most 64 bytes, which are read as 16 words of 8 nibbles. The low
// nibbles of a word are multiplied with one word of four input codes, the high nibbles with another: a group of inputs
// is 16 words of low and 16 words of high codes. Codes are zero where the group has no weight, so the nibbles of
// neighbours that share a byte with it do not count.

#pragma once

#include <cstdint>

#include "cpu/simd_level.h"
#include "linear/linear_simd.h"

namespace sala::linear {

constexpr int64_t kGroupWords = 16;       // 32-bit words of a group of weights
constexpr int64_t kBlockTokens = 4;       // tokens that one reading of a row serves
constexpr int64_t kMostVectorLanes = 16;  // floats of the widest vector

/// How rows are cut into groups.
struct Int4Groups {
  int64_t count;
  int64_t columns;  // of one group
};

/// Inputs of one token as codes. Group g is at codes + g * codes_stride, its scale and base at g * scales_stride.
struct TokenCodes {
  int8_t* codes;  // 64 for low nibbles, then 64 for high ones
  int64_t codes_stride;
  float* scales;
  float* bases;  // -8 times the sum of the codes, since nibbles are codes plus 8
  int64_t scales_stride;
};

struct Int4Kernels {
  void (*encode)(const float* x, Int4Groups groups, TokenCodes token);
  /// out[row * out_stride + token] for 1 to kBlockTokens tokens. Those lie side by side: codes in [groups, tokens,
  /// 128], scales and bases in [groups, scales_of(tokens)]. `scratch` has few_scratch_floats().
  void (*few)(const Row* rows, int64_t num_rows, Int4Groups groups, TokenCodes first, int64_t tokens, float* scratch,
              float* out, int64_t out_stride);
};

/// Products of many tokens: panels of rows and tiles of tokens, both in an order of the kernels' own, group after
/// group.
struct Int4Panels {
  int64_t rows;                                // of a panel
  int64_t tokens;                              // of a tile
  int64_t least_tokens;                        // of a call that gains by these panels
  int64_t least_columns;                       // and of its groups
  int64_t (*panel_floats)(Int4Groups groups);  // of one group
  int64_t (*tile_floats)(Int4Groups groups);   // of one group
  /// Copies one token to its place in a tile.
  void (*place)(TokenCodes token, Int4Groups groups, float* tile, int64_t place);
  /// Makes a panel of groups [first, first + count). `scratch` has scales_floats().
  void (*expand)(const Row* rows, Int4Groups groups, int64_t first, int64_t count, float* panel, float* scratch);
  /// Adds the products of `count` groups to sums [tokens, rows], of which only those of the first `tokens` are defined.
  void (*add)(const float* panel, Int4Groups groups, int64_t count, const float* tile, int64_t tokens, float* sums);
  /// Transposes sums, where `add` has [rows, tokens] instead; else null.
  void (*transpose)(float* sums);
};

/// Numbers of a group of scales of so many tokens: they are read four at a time, but for a single token.
static constexpr int64_t scales_of(int64_t tokens) { return tokens == 1 ? 1 : kBlockTokens; }

/// Words in which a group of a row lies, wherever it begins.
static constexpr int64_t words_of(Int4Groups groups) { return (groups.columns + groups.columns % 2 + 7) / 8; }

int64_t few_scratch_floats(Int4Groups groups);
int64_t scales_floats(Int4Groups groups);  // for the scales of a row

// Levels whose instructions these kernels gain by.
#if defined(__x86_64__)
#define SALA_FOR_EACH_INT4_LEVEL(M) \
  M(kBaseline, baseline)            \
  M(kAvx2, avx2)                    \
  M(kAvx2Vnni, avx2_vnni)           \
  M(kAvx512, avx512)                \
  M(kAvx512Bf16, avx512_bf16)
#elif defined(__aarch64__)
#define SALA_FOR_EACH_INT4_LEVEL(M) \
  M(kBaseline, baseline)            \
  M(kNeonDot, neon_dot)             \
  M(kNeonMatrix, neon_matrix)
#else
#define SALA_FOR_EACH_INT4_LEVEL(M) SALA_FOR_EACH_SIMD_LEVEL(M)
#endif

#define SALA_DECLARE(level, name)        \
  namespace name {                       \
  extern const Int4Kernels kInt4Kernels; \
  extern const Int4Panels kInt4Panels;   \
  }
SALA_FOR_EACH_INT4_LEVEL(SALA_DECLARE)
#undef SALA_DECLARE

// And the level that has faster panels for some calls.
#if defined(__x86_64__)
namespace amx {
extern const Int4Panels kInt4Panels;
}
#define SALA_FOR_INT4_TILES(M) M(kAmx, amx)
#else
#define SALA_FOR_INT4_TILES(M)
#endif

}  // namespace sala::linear
