#include "common/contract.h"

#include <algorithm>
#include <limits>

namespace sala {
namespace {

constexpr int64_t kUnbound = std::numeric_limits<int64_t>::min();
constexpr int64_t kMaxInteger = std::numeric_limits<int32_t>::max();  // kernels take sizes as 32 bits

std::string bracketed(const std::string& text) { return std::string("[").append(text).append("]"); }

std::string expected_shape(const TensorRule& rule) {
  return bracketed(joined(rule.shape, [](const Extent& extent) { return extent.text; }));
}

std::string printed(std::span<const int64_t> shape) {
  return bracketed(joined(shape, [](int64_t extent) { return extent; }));
}

bool holds(Relation relation, int64_t left, int64_t right) {
  switch (relation) {
    case Relation::kEqual:
      return left == right;
    case Relation::kAtLeast:
      return left >= right;
    case Relation::kAtMost:
      return left <= right;
  }
  return false;
}

}  // namespace

Expected<Names> bind_attributes(const ContractTable& contract, std::span<const int64_t> integers) {
  for (size_t i = 0; i < integers.size(); ++i) {
    if (integers[i] > kMaxInteger || integers[i] < -kMaxInteger) {
      return error(contract.type, ": attribute ", contract.names[i], " = ", integers[i], " does not fit 32 bits");
    }
  }
  Names names(contract.names.size(), kUnbound);
  std::copy(integers.begin(), integers.end(), names.begin());
  return names;
}

Status bind_shape(const ContractTable& contract, const TensorRule& rule, std::span<const int64_t> shape, Names& names) {
  if (shape.size() != rule.shape.size()) {
    return error(contract.type, ": ", rule.name, " has shape ", printed(shape), ", expected ", expected_shape(rule));
  }
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    const Extent& extent = rule.shape[axis];
    if (shape[axis] < 0 || shape[axis] > kMaxInteger) {
      return error(contract.type, ": ", rule.name, " has shape ", printed(shape), "; an extent must fit 31 bits");
    }
    if (extent.dimension != kNone && names[extent.dimension] == kUnbound) {
      names[extent.dimension] = shape[axis];
    } else if (const int64_t value = extent.value(names.data()); value != shape[axis]) {
      return error(contract.type, ": ", rule.name, " has shape ", printed(shape), ", expected ", expected_shape(rule),
                   " with ", extent.text, " = ", value);
    }
  }
  return success();
}

Status check_conditions(const ContractTable& contract, std::span<const Condition> conditions, const Names& names) {
  for (const Condition& condition : conditions) {
    const int64_t left = condition.left(names.data());
    const int64_t right = condition.right(names.data());
    if (!holds(condition.relation, left, right)) {
      return error(contract.type, ": ", condition.text, " does not hold (", left, " and ", right, "): ", condition.doc);
    }
  }
  return success();
}

std::vector<int64_t> shape_of(const TensorRule& rule, const Names& names) {
  std::vector<int64_t> shape;
  for (const Extent& extent : rule.shape) shape.push_back(extent.value(names.data()));
  return shape;
}

}  // namespace sala
