// The contract of LightningAttention for C++. Written by `python -m plugins.aot.contracts`: change
// sala_export/ops/lightning_attention/schema.py, then run it.
// clang-format off

#pragma once

#include "common/contract_table.h"
#include "common/expression.h"

namespace sala::ops {

/// Attributes and dimensions of one call.
struct LightningAttentionSizes {
  /// Heads H, a power of two; head h decays by exp(-2^(-8(h+1)/H)).
  int64_t num_heads;
  /// Channels D of a head, for keys and values alike; even.
  int64_t head_dim;
  /// batch
  int64_t B;
  /// tokens of this chunk, at least 1; every token of every row is real (no padding)
  int64_t T;
  /// Added to the mean square in all three norms.
  float eps;
  /// Factor on q k^T, 1/sqrt(head_dim) in SALA.
  float scale;
};

/// The tensors of one call on the CPU, dense and row-major. The new value of an input may have that input's address: it
/// is then updated in place. No other overlap is allowed.
struct LightningAttentionTensors {
  /// [B, T, 4 * num_heads * head_dim] Projections of the mixer input, concatenated in the order q, k, v, z; heads
  /// contiguous within each.
  const float* qkvz;
  /// [head_dim] RMSNorm weight of each query head.
  const float* q_norm;
  /// [head_dim] RMSNorm weight of each key head.
  const float* k_norm;
  /// [num_heads * head_dim] RMSNorm weight over all heads together.
  const float* o_norm;
  /// [B, T, head_dim] First half cos, second half sin of position * inv_freq, for the absolute positions of this chunk.
  const float* rope_cos_sin;
  /// [B, num_heads, head_dim, head_dim] Recurrent state before the chunk, [key dim, value dim]; zeros at the start of a
  /// sequence.
  const float* state;
  /// [B, T, num_heads * head_dim] Normed and gated output, ready for o_proj.
  float* y;
  /// [B, num_heads, head_dim, head_dim] State after the last token.
  float* state_out;
};

namespace lightning_attention {

inline constexpr Attribute kAttributes[] = {
    {"num_heads", false, 0},
    {"head_dim", false, 1},
    {"eps", true, 0},
    {"scale", true, 1}};

inline constexpr const char* kNames[] = {"num_heads", "head_dim", "B", "T"};

inline constexpr Extent kInput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"T", [](const int64_t* n) -> int64_t { return n[3]; }, 3},
    {"4 * num_heads * head_dim", [](const int64_t* n) -> int64_t { return 4 * n[0] * n[1]; }, kNone}};

inline constexpr Extent kInput1Shape[] = {{"head_dim", [](const int64_t* n) -> int64_t { return n[1]; }, kNone}};

inline constexpr Extent kInput3Shape[] = {
    {"num_heads * head_dim", [](const int64_t* n) -> int64_t { return n[0] * n[1]; }, kNone}};

inline constexpr Extent kInput4Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"T", [](const int64_t* n) -> int64_t { return n[3]; }, 3},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[1]; }, kNone}};

inline constexpr Extent kInput5Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"num_heads", [](const int64_t* n) -> int64_t { return n[0]; }, kNone},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[1]; }, kNone},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[1]; }, kNone}};

inline constexpr TensorRule kInputs[] = {
    {"qkvz", DataType::kActivation, kInput0Shape, kNone},
    {"q_norm", DataType::kActivation, kInput1Shape, kNone},
    {"k_norm", DataType::kActivation, kInput1Shape, kNone},
    {"o_norm", DataType::kActivation, kInput3Shape, kNone},
    {"rope_cos_sin", DataType::kFloat32, kInput4Shape, kNone},
    {"state", DataType::kFloat32, kInput5Shape, kNone}};

inline constexpr Extent kOutput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"T", [](const int64_t* n) -> int64_t { return n[3]; }, 3},
    {"num_heads * head_dim", [](const int64_t* n) -> int64_t { return n[0] * n[1]; }, kNone}};

inline constexpr Extent kOutput1Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"num_heads", [](const int64_t* n) -> int64_t { return n[0]; }, kNone},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[1]; }, kNone},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[1]; }, kNone}};

inline constexpr TensorRule kOutputs[] = {
    {"y", DataType::kActivation, kOutput0Shape, kNone},
    {"state_out", DataType::kFloat32, kOutput1Shape, 5}};

inline constexpr Condition kConditions[] = {
    {"num_heads >= 1", [](const int64_t* n) -> int64_t { return n[0]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "there is at least one head"},
    {"is_power_of_two(num_heads) == 1", [](const int64_t* n) -> int64_t { return is_power_of_two(n[0]); },
     Relation::kEqual, [](const int64_t*) -> int64_t { return 1; },
     "the formula of the decay slopes holds for a power of two alone"},
    {"head_dim >= 2", [](const int64_t* n) -> int64_t { return n[1]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 2; }, "RoPE turns at least one pair of channels"},
    {"T >= 1", [](const int64_t* n) -> int64_t { return n[3]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "a chunk holds at least one token"},
    {"2 * fdiv(head_dim, 2) == head_dim", [](const int64_t* n) -> int64_t { return 2 * fdiv(n[1], 2); },
     Relation::kEqual, [](const int64_t* n) -> int64_t { return n[1]; },
     "RoPE pairs channel i with channel i + head_dim / 2"}};

inline constexpr ContractTable kContract =
    {"LightningAttention", kAttributes, kNames, 2, 2, kInputs, kOutputs, kConditions};

}  // namespace lightning_attention

}  // namespace sala::ops
