// The contract of BlockQuantize for C++. Written by `python -m plugins.aot.contracts`: change
// sala_export/ops/block_quantize/schema.py, then run it.
// clang-format off

#pragma once

#include "common/contract_table.h"
#include "common/expression.h"

namespace sala::ops {

/// Attributes and dimensions of one call.
struct BlockQuantizeSizes {
  /// Numbers of a row of codes, a multiple of 128.
  int64_t columns;
  /// 1 to quantise `silu(gate) * up`, 0 to quantise `x` itself.
  int64_t gated;
  /// batch
  int64_t B;
  /// tokens of this chunk, at least 1
  int64_t T;
};

/// The tensors of one call on the CPU, dense and row-major. The new value of an input may have that input's address: it
/// is then updated in place. No other overlap is allowed.
struct BlockQuantizeTensors {
  /// [B, T, columns * (1 + gated)] What is quantised; with `gated` the projections gate and up, one after the other.
  const float* x;
  /// [B, T, columns] The rows over their scales.
  uint8_t* codes;
  /// [fdiv(columns, 128), B, T] Scales as e8m0 bytes, 2^(byte - 127): a word holds those of 128 neighbours of a row, 32
  /// by 32 from its low bits up.
  int32_t* scales;
};

namespace block_quantize {

inline constexpr Attribute kAttributes[] = {{"columns", false, 0}, {"gated", false, 1}};

inline constexpr const char* kNames[] = {"columns", "gated", "B", "T"};

inline constexpr Extent kInput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"T", [](const int64_t* n) -> int64_t { return n[3]; }, 3},
    {"columns * (1 + gated)", [](const int64_t* n) -> int64_t { return n[0] * (1 + n[1]); }, kNone}};

inline constexpr TensorRule kInputs[] = {{"x", DataType::kActivation, kInput0Shape, kNone}};

inline constexpr Extent kOutput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"T", [](const int64_t* n) -> int64_t { return n[3]; }, 3},
    {"columns", [](const int64_t* n) -> int64_t { return n[0]; }, kNone}};

inline constexpr Extent kOutput1Shape[] = {
    {"fdiv(columns, 128)", [](const int64_t* n) -> int64_t { return fdiv(n[0], 128); }, kNone},
    {"B", [](const int64_t* n) -> int64_t { return n[2]; }, 2},
    {"T", [](const int64_t* n) -> int64_t { return n[3]; }, 3}};

inline constexpr TensorRule kOutputs[] = {
    {"codes", DataType::kFloat8E4M3FN, kOutput0Shape, kNone},
    {"scales", DataType::kInt32, kOutput1Shape, kNone}};

inline constexpr Condition kConditions[] = {
    {"T >= 1", [](const int64_t* n) -> int64_t { return n[3]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "a chunk holds at least one token"},
    {"columns >= 128", [](const int64_t* n) -> int64_t { return n[0]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 128; }, "there is at least one word of scales"},
    {"128 * fdiv(columns, 128) == columns", [](const int64_t* n) -> int64_t { return 128 * fdiv(n[0], 128); },
     Relation::kEqual, [](const int64_t* n) -> int64_t { return n[0]; },
     "a word holds the scales of 128 neighbours"},
    {"gated >= 0", [](const int64_t* n) -> int64_t { return n[1]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 0; }, "gated is 0 or 1"},
    {"gated <= 1", [](const int64_t* n) -> int64_t { return n[1]; }, Relation::kAtMost,
     [](const int64_t*) -> int64_t { return 1; }, "gated is 0 or 1"}};

inline constexpr ContractTable kContract =
    {"BlockQuantize", kAttributes, kNames, 2, 0, kInputs, kOutputs, kConditions};

}  // namespace block_quantize

}  // namespace sala::ops
