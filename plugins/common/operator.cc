#include "common/operator.h"

#include <algorithm>
#include <limits>
#include <string>

namespace sala {
namespace {

constexpr int64_t kMaxGrid[3] = {std::numeric_limits<int32_t>::max(), 65535, 65535};  // CUDA C++ Programming Guide

/// "head_dim = 64" for every variant.
std::string printed_variants(const OperatorTable& table) {
  std::ostringstream text;
  const size_t width = table.variant_names.size();
  for (size_t at = 0; at < table.variant_values.size(); ++at) {
    const char* separator = at == 0 ? "" : at % width == 0 ? "; " : ", ";
    text << separator << table.names[table.variant_names[at % width]] << " = " << table.variant_values[at];
  }
  return text.str();
}

int32_t find_variant(const OperatorTable& table, std::span<const int64_t> integers) {
  const size_t width = table.variant_names.size();
  if (width == 0) return 0;  // no attribute is fixed in the kernels: there is one variant
  for (size_t first = 0; first < table.variant_values.size(); first += width) {
    const auto matches = [&](size_t i) { return integers[table.variant_names[i]] == table.variant_values[first + i]; };
    size_t equal = 0;
    while (equal < width && matches(equal)) ++equal;
    if (equal == width) return static_cast<int32_t>(first / width);
  }
  return kNone;
}

Layout laid_out(std::span<const Workspace> buffers, const Call& call) {
  Layout layout{{}, 0};
  for (const Workspace& buffer : buffers) {
    int64_t bytes = bytes_of(buffer.dtype == DataType::kActivation ? call.activation : buffer.dtype);
    for (const Expression extent : buffer.shape) bytes *= extent(call.names.data());
    layout.offsets.push_back(layout.bytes);
    layout.bytes += (bytes + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
  }
  return layout;
}

bool takes_counters(const Launch& launch) {
  return std::any_of(launch.arguments.begin(), launch.arguments.end(),
                     [](const Argument& argument) { return argument.kind == Argument::Kind::kCounter; });
}

}  // namespace

std::string_view name_of(DataType dtype) {
  constexpr std::string_view kNames[] = {"any activation type", "float32", "float16", "bfloat16",
                                         "float8_e4m3fn",       "int8",    "int32",   "int64",
                                         "another type"};
  return kNames[static_cast<size_t>(dtype)];
}

int64_t bytes_of(DataType dtype) {
  constexpr int64_t kBytes[] = {0, 4, 2, 2, 1, 1, 4, 8, 0};
  return kBytes[static_cast<size_t>(dtype)];
}

int64_t bytes_of(const TensorView& tensor) {
  int64_t bytes = bytes_of(tensor.dtype);
  for (const int64_t extent : tensor.shape) bytes *= extent;
  return bytes;
}

Expected<Operator> Operator::create(const OperatorTable& table, std::vector<int64_t> integers,
                                    std::vector<float> floats) {
  if (const auto names = bind_attributes(table, integers); !names) return names.error();
  const int32_t variant = find_variant(table, integers);
  if (variant == kNone) {
    const auto print = [&](int32_t name) {
      return std::string(table.names[name]) + " = " + std::to_string(integers[name]);
    };
    return error(table.type, ": no kernels for ", joined(table.variant_names, print), "; there are kernels for ",
                 printed_variants(table));
  }
  return Operator(table, std::move(integers), std::move(floats), variant);
}

Expected<Call> Operator::bind(std::span<const TensorView> inputs, std::span<const TensorView> outputs) const {
  if (inputs.size() != table_->inputs.size() || outputs.size() != table_->outputs.size()) {
    return error(table_->type, ": expected ", table_->inputs.size(), " inputs and ", table_->outputs.size(),
                 " outputs, got ", inputs.size(), " and ", outputs.size());
  }
  auto names = bind_attributes(*table_, integers_);
  if (!names) return names.error();
  Call call{std::move(*names), DataType::kActivation};
  const auto bind_all = [&](std::span<const TensorRule> rules, std::span<const TensorView> tensors) -> Status {
    for (size_t i = 0; i < rules.size(); ++i) {
      SALA_RETURN_IF_ERROR(check_type(rules[i], tensors[i].dtype, call.activation));
      SALA_RETURN_IF_ERROR(bind_shape(*table_, rules[i], tensors[i].shape, call.names));
    }
    return success();
  };
  SALA_RETURN_IF_ERROR(bind_all(table_->inputs, inputs));
  SALA_RETURN_IF_ERROR(bind_all(table_->outputs, outputs));
  SALA_RETURN_IF_ERROR(check_conditions(*table_, table_->conditions, call.names));
  SALA_RETURN_IF_ERROR(check_conditions(*table_, table_->kernel_conditions, call.names));
  SALA_RETURN_IF_ERROR(check_grids(call));
  return call;
}

Status Operator::check_type(const TensorRule& rule, DataType dtype, DataType& activation) const {
  if (rule.dtype != DataType::kActivation) {
    if (dtype == rule.dtype) return success();
    return error(table_->type, ": ", rule.name, " is ", name_of(dtype), ", expected ", name_of(rule.dtype));
  }
  if (activation == DataType::kActivation) {
    const auto shipped = activations();
    if (std::find(shipped.begin(), shipped.end(), dtype) == shipped.end()) {
      return error(table_->type, ": ", rule.name, " is ", name_of(dtype), "; there are kernels for ",
                   joined(shipped, name_of));
    }
    activation = dtype;
  }
  if (dtype == activation) return success();
  return error(table_->type, ": ", rule.name, " is ", name_of(dtype), ", expected ", name_of(activation),
               " as the tensors before it");
}

Status Operator::check_grids(const Call& call) const {
  for (const Launch& launch : launches(call)) {
    // Of every architecture: an engine is built where the GPU that will run it is not known.
    for (const Image& image : launch.images) {
      if (image.activation != call.activation || image.variant != variant_) continue;
      for (size_t axis = 0; axis < 3; ++axis) {
        const int64_t blocks = image.grid[axis](call.names.data());
        if (blocks > kMaxGrid[axis]) {
          return error(table_->type, ": ", launch.kernel, " for sm_", image.sm, " would need ", blocks,
                       " blocks along ", "xyz"[axis], ", CUDA allows ", kMaxGrid[axis],
                       "; use a shorter chunk or a smaller batch");
        }
      }
    }
  }
  return success();
}

std::span<const DataType> Operator::activations() const {
  const auto is_activation = [](const TensorRule& rule) { return rule.dtype == DataType::kActivation; };
  const bool is_given = std::any_of(table_->inputs.begin(), table_->inputs.end(), is_activation);
  return is_given ? table_->activations : table_->activations.first(1);
}

Layout Operator::workspaces(const Call& call) const { return laid_out(table_->workspaces, call); }

Layout Operator::counters(const Call& call) const {
  const std::span<const Launch> all = launches(call);
  const bool are_taken = std::any_of(all.begin(), all.end(), takes_counters);
  return are_taken ? laid_out(table_->counters, call) : Layout{{}, 0};
}

std::span<const Launch> Operator::launches(const Call& call) const {
  return call.names[table_->tokens] == 1 ? table_->decode : table_->prefill;
}

}  // namespace sala
