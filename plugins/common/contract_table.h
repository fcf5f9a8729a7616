// The contract of an operator as data. `python -m plugins.aot.contracts` writes the tables (`<op>/<op>_contract.h`)
// from sala_export/ops/<op>/schema.py, so that nothing about a contract is typed twice.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace sala {

enum class DataType : uint8_t {
  kActivation,
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3FN,
  kInt8,
  kInt32,
  kInt64,
  kUnknown
};

/// Value of an expression; `names` holds the integer attributes, then the dimensions, as in ContractTable::names.
using Expression = int64_t (*)(const int64_t* names);

constexpr int32_t kNone = -1;

struct Extent {
  const char* text;
  Expression value;
  int32_t dimension;  // index in ContractTable::names that this extent defines when met first, else kNone
};

struct TensorRule {
  const char* name;
  DataType dtype;
  std::span<const Extent> shape;
  int32_t updates;  // outputs: index of the input that shares the buffer, else kNone
};

struct Attribute {
  const char* name;
  bool is_float;
  int32_t index;  // among the integer attributes or among the float attributes
};

enum class Relation : uint8_t { kEqual, kAtLeast, kAtMost };

struct Condition {
  const char* text;
  Expression left;
  Relation relation;
  Expression right;
  const char* doc;
};

struct ContractTable {
  const char* type;                       // ONNX node type and plugin name
  std::span<const Attribute> attributes;  // in the contract's order
  std::span<const char* const> names;     // integer attributes, then dimensions
  int32_t num_integer_attributes;
  int32_t num_float_attributes;
  std::span<const TensorRule> inputs;
  std::span<const TensorRule> outputs;
  std::span<const Condition> conditions;
};

}  // namespace sala
