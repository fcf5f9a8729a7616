// One operator with its attributes: checks calls against the contract and sizes them. Knows neither CUDA nor TensorRT.

#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "common/contract.h"
#include "common/operator_table.h"

namespace sala {

std::string_view name_of(DataType dtype);
int64_t bytes_of(DataType dtype);

/// Type and shape of a tensor; the extents belong to the caller.
struct TensorView {
  DataType dtype;
  std::span<const int64_t> shape;
};

/// Sizes of one checked call.
struct Call {
  Names names;
  DataType activation;
};

/// Buffers that lie one after the other.
struct Layout {
  std::vector<int64_t> offsets;  // in bytes
  int64_t bytes;                 // of all together
};

class Operator {
 public:
  /// Fails if no cubins exist for these attributes, or a value exceeds 32 bits. The counts are the table's.
  static Expected<Operator> create(const OperatorTable& table, std::vector<int64_t> integers,
                                   std::vector<float> floats);

  /// Checks shapes and types of all inputs and outputs; the message names tensor, expected and got.
  Expected<Call> bind(std::span<const TensorView> inputs, std::span<const TensorView> outputs) const;

  /// Types that activations may have. Where no input has one, nobody chooses: outputs have the first that there is.
  std::span<const DataType> activations() const;

  /// Value of an extent that depends on attributes alone.
  int64_t constant(const Extent& extent) const { return extent.value(integers_.data()); }

  /// The workspaces of the call.
  Layout workspaces(const Call& call) const;

  /// The counters of the call; none if its launches take none.
  Layout counters(const Call& call) const;

  /// The launches that serve the call.
  std::span<const Launch> launches(const Call& call) const;

  const OperatorTable& table() const { return *table_; }
  int32_t variant() const { return variant_; }
  std::span<const int64_t> integers() const { return integers_; }
  std::span<const float> floats() const { return floats_; }

 private:
  Operator(const OperatorTable& table, std::vector<int64_t> integers, std::vector<float> floats, int32_t variant)
      : table_(&table), integers_(std::move(integers)), floats_(std::move(floats)), variant_(variant) {}

  Status check_type(const TensorRule& rule, DataType dtype, DataType& activation) const;
  Status check_grids(const Call& call) const;

  const OperatorTable* table_;
  std::vector<int64_t> integers_;
  std::vector<float> floats_;
  int32_t variant_;
};

/// Bytes of a tensor.
int64_t bytes_of(const TensorView& tensor);

}  // namespace sala
