// The contract of InfLLMv2Attention for C++. Written by `python -m plugins.aot.contracts`: change
// sala_export/ops/infllmv2_attention/schema.py, then run it.
// clang-format off

#pragma once

#include "common/contract_table.h"
#include "common/expression.h"

namespace sala::ops {

/// Attributes and dimensions of one call.
struct InfLLMv2AttentionSizes {
  /// Query heads.
  int64_t num_heads;
  /// Key and value heads G; num_heads / G query heads share each.
  int64_t num_kv_heads;
  /// Channels of a head.
  int64_t head_dim;
  /// Keys averaged into one k1 key; k2 averages 4 times as many.
  int64_t kernel_size;
  /// Keys between k1 windows; k2 strides 4 times as far.
  int64_t kernel_stride;
  /// Keys of a block, the unit of selection; a multiple of the stride.
  int64_t block_size;
  /// A query takes topk + window_size / block_size blocks, forced included.
  int64_t topk;
  /// Keys of the local window; a multiple of block_size.
  int64_t window_size;
  /// Blocks at the start of the context that every query takes.
  int64_t init_blocks;
  /// Contexts shorter than this attend densely; -1: none does.
  int64_t dense_len;
  /// batch
  int64_t B;
  /// tokens of this chunk, at least 1; every token of every row is real (no padding)
  int64_t T;
  /// capacity of the caches in tokens, at least past_length + T
  int64_t C;
  /// capacity of k1_cache in compressed keys
  int64_t C1;
  /// capacity of k2_cache in compressed keys
  int64_t C2;
  /// Factor on q k^T, 1/sqrt(head_dim) in SALA.
  float scale;
};

/// The tensors of one call on the CPU, dense and row-major. The new value of an input may have that input's address: it
/// is then updated in place. No other overlap is allowed.
struct InfLLMv2AttentionTensors {
  /// Element type of the caches: kFloat32, kBFloat16 or kFloat16. Everything else is float32.
  DataType cache_dtype;
  /// [B, T, 2 * (num_heads + num_kv_heads) * head_dim] Projections of the mixer input, in the order q, k, v, gate;
  /// heads contiguous within each.
  const float* qkvg;
  /// [B] Tokens already in the caches; row t of the chunk has position past_length + t.
  const int32_t* past_length;
  /// [B] Tokens of the whole context, at least past_length + T; the row is sparse iff this is at least dense_len. It
  /// decides nothing else.
  const int32_t* context_length;
  /// [B, num_kv_heads, C, head_dim] Keys; rows 0 .. past_length - 1 are valid on entry.
  const void* k_cache;
  /// [B, num_kv_heads, C, head_dim] Values; rows 0 .. past_length - 1 are valid on entry.
  const void* v_cache;
  /// [B, num_kv_heads, C1, head_dim] Means of kernel_size keys every kernel_stride keys; complete windows are valid.
  const void* k1_cache;
  /// [B, num_kv_heads, C2, head_dim] Means of 4 kernel_size keys every 4 kernel_stride keys; used for the log-sum-exp.
  const void* k2_cache;
  /// [B, T, num_heads * head_dim] Gated attention output, ready for o_proj.
  float* y;
  /// [B, num_kv_heads, C, head_dim] k_cache after the chunk.
  void* k_cache_out;
  /// [B, num_kv_heads, C, head_dim] v_cache after the chunk.
  void* v_cache_out;
  /// [B, num_kv_heads, C1, head_dim] k1_cache after the chunk.
  void* k1_cache_out;
  /// [B, num_kv_heads, C2, head_dim] k2_cache after the chunk.
  void* k2_cache_out;
};

namespace infllmv2_attention {

inline constexpr Attribute kAttributes[] = {
    {"num_heads", false, 0},
    {"num_kv_heads", false, 1},
    {"head_dim", false, 2},
    {"scale", true, 0},
    {"kernel_size", false, 3},
    {"kernel_stride", false, 4},
    {"block_size", false, 5},
    {"topk", false, 6},
    {"window_size", false, 7},
    {"init_blocks", false, 8},
    {"dense_len", false, 9}};

inline constexpr const char* kNames[] = {
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "kernel_size",
    "kernel_stride",
    "block_size",
    "topk",
    "window_size",
    "init_blocks",
    "dense_len",
    "B",
    "T",
    "C",
    "C1",
    "C2"};

inline constexpr Extent kInput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10},
    {"T", [](const int64_t* n) -> int64_t { return n[11]; }, 11},
    {"2 * (num_heads + num_kv_heads) * head_dim",
     [](const int64_t* n) -> int64_t { return 2 * (n[0] + n[1]) * n[2]; }, kNone}};

inline constexpr Extent kInput1Shape[] = {{"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10}};

inline constexpr Extent kInput3Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10},
    {"num_kv_heads", [](const int64_t* n) -> int64_t { return n[1]; }, kNone},
    {"C", [](const int64_t* n) -> int64_t { return n[12]; }, 12},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[2]; }, kNone}};

inline constexpr Extent kInput5Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10},
    {"num_kv_heads", [](const int64_t* n) -> int64_t { return n[1]; }, kNone},
    {"C1", [](const int64_t* n) -> int64_t { return n[13]; }, 13},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[2]; }, kNone}};

inline constexpr Extent kInput6Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10},
    {"num_kv_heads", [](const int64_t* n) -> int64_t { return n[1]; }, kNone},
    {"C2", [](const int64_t* n) -> int64_t { return n[14]; }, 14},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[2]; }, kNone}};

inline constexpr TensorRule kInputs[] = {
    {"qkvg", DataType::kActivation, kInput0Shape, kNone},
    {"past_length", DataType::kInt32, kInput1Shape, kNone},
    {"context_length", DataType::kInt32, kInput1Shape, kNone},
    {"k_cache", DataType::kActivation, kInput3Shape, kNone},
    {"v_cache", DataType::kActivation, kInput3Shape, kNone},
    {"k1_cache", DataType::kActivation, kInput5Shape, kNone},
    {"k2_cache", DataType::kActivation, kInput6Shape, kNone}};

inline constexpr Extent kOutput0Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10},
    {"T", [](const int64_t* n) -> int64_t { return n[11]; }, 11},
    {"num_heads * head_dim", [](const int64_t* n) -> int64_t { return n[0] * n[2]; }, kNone}};

inline constexpr Extent kOutput1Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10},
    {"num_kv_heads", [](const int64_t* n) -> int64_t { return n[1]; }, kNone},
    {"C", [](const int64_t* n) -> int64_t { return n[12]; }, 12},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[2]; }, kNone}};

inline constexpr Extent kOutput3Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10},
    {"num_kv_heads", [](const int64_t* n) -> int64_t { return n[1]; }, kNone},
    {"C1", [](const int64_t* n) -> int64_t { return n[13]; }, 13},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[2]; }, kNone}};

inline constexpr Extent kOutput4Shape[] = {
    {"B", [](const int64_t* n) -> int64_t { return n[10]; }, 10},
    {"num_kv_heads", [](const int64_t* n) -> int64_t { return n[1]; }, kNone},
    {"C2", [](const int64_t* n) -> int64_t { return n[14]; }, 14},
    {"head_dim", [](const int64_t* n) -> int64_t { return n[2]; }, kNone}};

inline constexpr TensorRule kOutputs[] = {
    {"y", DataType::kActivation, kOutput0Shape, kNone},
    {"k_cache_out", DataType::kActivation, kOutput1Shape, 3},
    {"v_cache_out", DataType::kActivation, kOutput1Shape, 4},
    {"k1_cache_out", DataType::kActivation, kOutput3Shape, 5},
    {"k2_cache_out", DataType::kActivation, kOutput4Shape, 6}};

inline constexpr Condition kConditions[] = {
    {"num_heads >= 1", [](const int64_t* n) -> int64_t { return n[0]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "there is at least one query head"},
    {"num_kv_heads >= 1", [](const int64_t* n) -> int64_t { return n[1]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "there is at least one key head"},
    {"head_dim >= 1", [](const int64_t* n) -> int64_t { return n[2]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "a head has at least one channel"},
    {"kernel_size >= 1", [](const int64_t* n) -> int64_t { return n[3]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "a window holds at least one key"},
    {"kernel_stride >= 1", [](const int64_t* n) -> int64_t { return n[4]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "neighbouring windows differ"},
    {"block_size >= 1", [](const int64_t* n) -> int64_t { return n[5]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "a block holds at least one key"},
    {"window_size >= 0", [](const int64_t* n) -> int64_t { return n[7]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 0; }, "a window of no keys leaves the query's own block"},
    {"init_blocks >= 0", [](const int64_t* n) -> int64_t { return n[8]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 0; }, "no query takes fewer than no initial blocks"},
    {"T >= 1", [](const int64_t* n) -> int64_t { return n[11]; }, Relation::kAtLeast,
     [](const int64_t*) -> int64_t { return 1; }, "a chunk holds at least one token"},
    {"C >= T", [](const int64_t* n) -> int64_t { return n[12]; }, Relation::kAtLeast,
     [](const int64_t* n) -> int64_t { return n[11]; }, "the chunk must fit the cache"},
    {"C1 >= fdiv(C - kernel_size, kernel_stride) + 1", [](const int64_t* n) -> int64_t { return n[13]; },
     Relation::kAtLeast, [](const int64_t* n) -> int64_t { return fdiv(n[12] - n[3], n[4]) + 1; },
     "k1_cache and k2_cache hold every complete window of a full cache"},
    {"C2 >= fdiv(C - 4 * kernel_size, 4 * kernel_stride) + 1", [](const int64_t* n) -> int64_t { return n[14]; },
     Relation::kAtLeast, [](const int64_t* n) -> int64_t { return fdiv(n[12] - 4 * n[3], 4 * n[4]) + 1; },
     "k1_cache and k2_cache hold every complete window of a full cache"},
    {"num_kv_heads * fdiv(num_heads, num_kv_heads) == num_heads",
     [](const int64_t* n) -> int64_t { return n[1] * fdiv(n[0], n[1]); }, Relation::kEqual,
     [](const int64_t* n) -> int64_t { return n[0]; }, "query heads divide evenly among key heads"},
    {"kernel_stride * fdiv(block_size, kernel_stride) == block_size",
     [](const int64_t* n) -> int64_t { return n[4] * fdiv(n[5], n[4]); }, Relation::kEqual,
     [](const int64_t* n) -> int64_t { return n[5]; }, "a block holds a whole number of strides"},
    {"kernel_size >= kernel_stride + 1", [](const int64_t* n) -> int64_t { return n[3]; }, Relation::kAtLeast,
     [](const int64_t* n) -> int64_t { return n[4] + 1; },
     "windows overlap, so that no complete one scores a block after the query's own"},
    {"block_size * fdiv(window_size, block_size) == window_size",
     [](const int64_t* n) -> int64_t { return n[5] * fdiv(n[7], n[5]); }, Relation::kEqual,
     [](const int64_t* n) -> int64_t { return n[7]; },
     "a window that is not a multiple of block_size would hold a part of a block"},
    {"topk >= init_blocks + 1", [](const int64_t* n) -> int64_t { return n[6]; }, Relation::kAtLeast,
     [](const int64_t* n) -> int64_t { return n[8] + 1; },
     "the forced blocks must fit among the taken ones: initial, window and own"}};

inline constexpr ContractTable kContract =
    {"InfLLMv2Attention", kAttributes, kNames, 10, 1, kInputs, kOutputs, kConditions};

}  // namespace infllmv2_attention

}  // namespace sala::ops
