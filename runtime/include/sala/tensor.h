// Names, types and shapes of what crosses the engine interface.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace sala {

enum class DType {
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt32,
  kInt64,
  kFloat8E4M3FN,
  kFloat4E2M1FN,  // two in a byte, the first in the low bits
  kInt8,
  kUInt8,
};

/// `float32`, `bfloat16`, ...: the spelling of bundle.json.
std::string_view name_of(DType dtype);

/// Bytes that so many elements take, half a byte rounded up. -1 if `elements` is negative or the bytes exceed int64.
int64_t bytes_of(DType dtype, int64_t elements);

/// One dimension: a number, or a name whose value a session or step decides.
struct Extent {
  int64_t value = 0;
  std::string symbol;  // empty: `value` holds

  bool operator==(const Extent&) const = default;
};

using Shape = std::vector<int64_t>;
using SymbolSizes = std::map<std::string, int64_t, std::less<>>;

struct TensorSpec {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<Extent> shape;

  /// The shape with symbols replaced; -1 for a symbol that `sizes` lacks.
  Shape bound(const SymbolSizes& sizes) const;
};

/// Product of the extents; 1 for a scalar. -1 if an extent is negative or the product exceeds int64.
int64_t elements_of(const Shape& shape);

/// `[2, 16, 64]`.
std::string to_string(const Shape& shape);

/// A tensor at run time. The memory, host or device, belongs to someone else.
struct Tensor {
  std::string_view name;
  DType dtype;
  Shape shape;
  void* data;
};

}  // namespace sala
