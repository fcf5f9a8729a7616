// The contract of BlockScaledLinearAdd for C++. Written by `python -m plugins.aot.contracts`: change
// sala_export/ops/block_scaled_linear_add/schema.py, then run it.
// clang-format off

#pragma once

#include "common/contract_table.h"
#include "common/expression.h"

namespace sala::ops {

/// Attributes and dimensions of one call.
struct BlockScaledLinearAddSizes {
  /// batch
  int64_t B;
  /// tokens of this chunk, at least 1
  int64_t T;
  /// inputs, a multiple of 128
  int64_t K;
  /// outputs, a multiple of 8
  int64_t N;
  /// Multiplies the product before it is added.
  float factor;
};

/// The tensors of one call on the CPU, dense and row-major. The new value of an input may have that input's address: it
/// is then updated in place. No other overlap is allowed.
struct BlockScaledLinearAddTensors {
  /// [B, T, K] Codes of the input.
  const uint8_t* x;
  /// [fdiv(K, 128), B, T] Scales as e8m0 bytes, 2^(byte - 127): a word holds those of 128 neighbours of a row, 32 by 32
  /// from its low bits up.
  const int32_t* x_scales;
  /// [N, K] Codes of the weight.
  const uint8_t* weight;
  /// [fdiv(K, 128), N] Scales as e8m0 bytes, 2^(byte - 127): a word holds those of 128 neighbours of a row, 32 by 32
  /// from its low bits up.
  const int32_t* weight_scales;
  /// [B, T, N] What the product is added to.
  const float* stream;
  /// [B, T, N] `stream` plus `factor` times the product.
  float* y;
};

namespace block_scaled_linear_add {

inline constexpr Attribute kAttributes[] = {{"factor", true, 0}};

inline constexpr const char* kNames[] = {"B", "T", "K", "N"};

inline constexpr Extent kInput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[0]; }, 0},
    {"T", [](const int64_t* n) -> int64_t { return n[1]; }, 1},
    {"K", [](const int64_t* n) -> int64_t { return n[2]; }, 2}};

inline constexpr Extent kInput1Shape[] = {
    {"fdiv(K, 128)", [](const int64_t* n) -> int64_t { return fdiv(n[2], 128); }, kNone},
    {"B", [](const int64_t* n) -> int64_t { return n[0]; }, 0},
    {"T", [](const int64_t* n) -> int64_t { return n[1]; }, 1}};

inline constexpr Extent kInput2Shape[] = {
    {"N", [](const int64_t* n) -> int64_t { return n[3]; }, 3},
    {"K", [](const int64_t* n) -> int64_t { return n[2]; }, 2}};

inline constexpr Extent kInput3Shape[] = {
    {"fdiv(K, 128)", [](const int64_t* n) -> int64_t { return fdiv(n[2], 128); }, kNone},
    {"N", [](const int64_t* n) -> int64_t { return n[3]; }, 3}};

inline constexpr Extent kInput4Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[0]; }, 0},
    {"T", [](const int64_t* n) -> int64_t { return n[1]; }, 1},
    {"N", [](const int64_t* n) -> int64_t { return n[3]; }, 3}};

inline constexpr TensorRule kInputs[] = {
    {"x", DataType::kFloat8E4M3FN, kInput0Shape, kNone},
    {"x_scales", DataType::kInt32, kInput1Shape, kNone},
    {"weight", DataType::kFloat8E4M3FN, kInput2Shape, kNone},
    {"weight_scales", DataType::kInt32, kInput3Shape, kNone},
    {"stream", DataType::kActivation, kInput4Shape, kNone}};

inline constexpr Extent kOutput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[0]; }, 0},
    {"T", [](const int64_t* n) -> int64_t { return n[1]; }, 1},
    {"N", [](const int64_t* n) -> int64_t { return n[3]; }, 3}};

inline constexpr TensorRule kOutputs[] = {{"y", DataType::kActivation, kOutput0Shape, kNone}};

inline constexpr Condition kConditions[] = {
    {"T >= 1", [](const int64_t* n) -> int64_t { return n[1]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "a chunk holds at least one token"},
    {"K >= 128", [](const int64_t* n) -> int64_t { return n[2]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 128; }, "there is at least one word of scales"},
    {"128 * fdiv(K, 128) == K", [](const int64_t* n) -> int64_t { return 128 * fdiv(n[2], 128); },
     Relation::kEqual, [](const int64_t* n) -> int64_t { return n[2]; },
     "a word holds the scales of 128 neighbours"},
    {"N >= 8", [](const int64_t* n) -> int64_t { return n[3]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 8; }, "there is at least one piece of eight outputs"},
    {"8 * fdiv(N, 8) == N", [](const int64_t* n) -> int64_t { return 8 * fdiv(n[3], 8); }, Relation::kEqual,
     [](const int64_t* n) -> int64_t { return n[3]; }, "a kernel stores eight outputs at once"}};

inline constexpr ContractTable kContract =
    {"BlockScaledLinearAdd", kAttributes, kNames, 0, 1, kInputs, kOutputs, kConditions};

}  // namespace block_scaled_linear_add

}  // namespace sala::ops
