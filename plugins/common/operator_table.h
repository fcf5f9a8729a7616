// An operator on the GPU as data: its contract, its launches and its cubins. plugins/aot writes the tables at build
// time from sala_export/ops/<op>/schema.py and triton_kernel.py, so that nothing about them is typed twice.

#pragma once

#include "common/contract_table.h"

namespace sala {

/// What a kernel parameter is filled with. `index` counts inputs, outputs, workspaces, counters, names or float
/// attributes.
struct Argument {
  enum class Kind : uint8_t { kInput, kOutput, kWorkspace, kCounter, kInteger, kFloat, kNull };
  Kind kind;
  int32_t index;
};

/// One cubin: a kernel for one activation type, one variant and one GPU architecture.
struct Image {
  DataType activation;
  int32_t variant;
  int32_t sm;         // 10 * major + minor
  bool runs_alone;    // on that architecture alone: compiled for "sm_<n>a", or for a Tegra
  bool is_dependent;  // may begin before the launch before it has ended: it waits for it by itself
  const unsigned char* data;
  const Expression* grid;  // of x, y and z: tiles differ between architectures
  uint32_t threads;        // per block
  uint32_t shared_bytes;   // dynamic, per block
};

struct Launch {
  const char* kernel;
  std::span<const Argument> arguments;  // in the compiled kernel's order, hidden parameters included
  std::span<const Image> images;
};

/// Scratch memory of a call, or counters that are zero between calls. Those of an operator lie one after the other,
/// each at a multiple of kAlignmentBytes.
struct Workspace {
  DataType dtype;
  std::span<const Expression> shape;
};

struct OperatorTable : ContractTable {
  int32_t tokens;                                // index in `names` of T; `decode` serves T == 1, `prefill` any T
  std::span<const Condition> kernel_conditions;  // what kernels need beyond the contract
  std::span<const DataType> activations;         // element types that cubins exist for
  std::span<const int32_t> variant_names;        // indices in `names`
  std::span<const int64_t> variant_values;       // variant after variant, each as long as variant_names
  std::span<const int32_t> sms;                  // architectures that cubins exist for
  std::span<const int32_t> only_sms;             // those that kernels can exist for; empty: all
  std::span<const Workspace> workspaces;
  std::span<const Workspace> counters;
  std::span<const Launch> prefill;
  std::span<const Launch> decode;
};

/// Buffers of TensorRT start at such addresses, and kernels are compiled for pointers that are multiples of 16.
constexpr int64_t kAlignmentBytes = 256;
constexpr uint64_t kPointerDivisor = 16;

/// All operators; defined in the generated tables.
extern const std::span<const OperatorTable* const> kOperators;

}  // namespace sala
