// Checks one call of an operator against its contract. What fails names the operator, the tensor or the rule.

#pragma once

#include <cstdint>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "common/contract_table.h"
#include "common/result.h"

namespace sala {

/// Values of ContractTable::names in one call.
using Names = std::vector<int64_t>;

/// The attributes by name, every dimension still to be bound. Fails if an attribute exceeds 32 bits.
Expected<Names> bind_attributes(const ContractTable& contract, std::span<const int64_t> integers);

/// Checks the shape of an input or output, and binds the dimensions that it is the first to have.
Status bind_shape(const ContractTable& contract, const TensorRule& rule, std::span<const int64_t> shape, Names& names);

/// Checks conditions, one after the other; every name is bound.
Status check_conditions(const ContractTable& contract, std::span<const Condition> conditions, const Names& names);

/// The shape that a tensor has in a call; every name is bound.
std::vector<int64_t> shape_of(const TensorRule& rule, const Names& names);

/// The items as `print` gives them, separated by commas.
template <class Range, class Print>
std::string joined(const Range& range, Print print) {
  std::ostringstream text;
  const char* separator = "";
  for (const auto& item : range) {
    text << separator << print(item);
    separator = ", ";
  }
  return text.str();
}

}  // namespace sala
