// The contract of RMSNormBlockQuantize for C++. Written by `python -m plugins.aot.contracts`: change
// sala_export/ops/rms_norm_block_quantize/schema.py, then run it.
// clang-format off

#pragma once

#include "common/contract_table.h"
#include "common/expression.h"

namespace sala::ops {

/// Attributes and dimensions of one call.
struct RMSNormBlockQuantizeSizes {
  /// Numbers of a row, a multiple of 128.
  int64_t columns;
  /// batch
  int64_t B;
  /// tokens of this chunk, at least 1
  int64_t T;
  /// Added to the mean square.
  float eps;
};

/// The tensors of one call on the CPU, dense and row-major. The new value of an input may have that input's address: it
/// is then updated in place. No other overlap is allowed.
struct RMSNormBlockQuantizeTensors {
  /// [B, T, columns] The residual stream.
  const float* x;
  /// [columns] RMSNorm weight.
  const float* weight;
  /// [B, T, columns] The normed rows over their scales.
  uint8_t* codes;
  /// [fdiv(columns, 128), B, T] Scales as e8m0 bytes, 2^(byte - 127): a word holds those of 128 neighbours of a row, 32
  /// by 32 from its low bits up.
  int32_t* scales;
};

namespace rms_norm_block_quantize {

inline constexpr Attribute kAttributes[] = {{"columns", false, 0}, {"eps", true, 0}};

inline constexpr const char* kNames[] = {"columns", "B", "T"};

inline constexpr Extent kInput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[1]; }, 1},
    {"T", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"columns", [](const int64_t* n) -> int64_t { return n[0]; }, kNone}};

inline constexpr Extent kInput1Shape[] = {{"columns", [](const int64_t* n) -> int64_t { return n[0]; }, kNone}};

inline constexpr TensorRule kInputs[] = {
    {"x", DataType::kActivation, kInput0Shape, kNone},
    {"weight", DataType::kActivation, kInput1Shape, kNone}};

inline constexpr Extent kOutput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[1]; }, 1},
    {"T", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"columns", [](const int64_t* n) -> int64_t { return n[0]; }, kNone}};

inline constexpr Extent kOutput1Shape[] = {
    {"fdiv(columns, 128)", [](const int64_t* n) -> int64_t { return fdiv(n[0], 128); }, kNone},
    {"B", [](const int64_t* n) -> int64_t { return n[1]; }, 1},
    {"T", [](const int64_t* n) -> int64_t { return n[2]; }, 2}};

inline constexpr TensorRule kOutputs[] = {
    {"codes", DataType::kFloat8E4M3FN, kOutput0Shape, kNone},
    {"scales", DataType::kInt32, kOutput1Shape, kNone}};

inline constexpr Condition kConditions[] = {
    {"T >= 1", [](const int64_t* n) -> int64_t { return n[2]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "a chunk holds at least one token"},
    {"columns >= 128", [](const int64_t* n) -> int64_t { return n[0]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 128; }, "there is at least one word of scales"},
    {"128 * fdiv(columns, 128) == columns", [](const int64_t* n) -> int64_t { return 128 * fdiv(n[0], 128); },
     Relation::kEqual, [](const int64_t* n) -> int64_t { return n[0]; },
     "a word holds the scales of 128 neighbours"}};

inline constexpr ContractTable kContract =
    {"RMSNormBlockQuantize", kAttributes, kNames, 1, 1, kInputs, kOutputs, kConditions};

}  // namespace rms_norm_block_quantize

}  // namespace sala::ops
