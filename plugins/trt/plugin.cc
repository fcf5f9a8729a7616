#include "trt/plugin.h"

#include <memory>
#include <utility>

#include "trt/log.h"

namespace sala::trt {
namespace {

DataType from_trt(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return DataType::kFloat32;
    case nvinfer1::DataType::kHALF:
      return DataType::kFloat16;
    case nvinfer1::DataType::kBF16:
      return DataType::kBFloat16;
    case nvinfer1::DataType::kFP8:
      return DataType::kFloat8E4M3FN;
    case nvinfer1::DataType::kINT8:
      return DataType::kInt8;
    case nvinfer1::DataType::kINT32:
      return DataType::kInt32;
    case nvinfer1::DataType::kINT64:
      return DataType::kInt64;
    default:
      return DataType::kUnknown;
  }
}

nvinfer1::DataType to_trt(DataType type, nvinfer1::DataType activation = nvinfer1::DataType::kFLOAT) {
  switch (type) {
    case DataType::kFloat32:
      return nvinfer1::DataType::kFLOAT;
    case DataType::kFloat16:
      return nvinfer1::DataType::kHALF;
    case DataType::kBFloat16:
      return nvinfer1::DataType::kBF16;
    case DataType::kFloat8E4M3FN:
      return nvinfer1::DataType::kFP8;
    case DataType::kInt8:
      return nvinfer1::DataType::kINT8;
    case DataType::kInt32:
      return nvinfer1::DataType::kINT32;
    case DataType::kInt64:
      return nvinfer1::DataType::kINT64;
    case DataType::kActivation:
    case DataType::kUnknown:
      break;
  }
  return activation;
}

TensorView view(const nvinfer1::Dims& dims, nvinfer1::DataType type) {
  return {from_trt(type), {dims.d, static_cast<size_t>(dims.nbDims)}};
}

std::vector<TensorView> views(const nvinfer1::PluginTensorDesc* tensors, size_t count) {
  std::vector<TensorView> result;
  for (size_t i = 0; i < count; ++i) result.push_back(view(tensors[i].dims, tensors[i].type));
  return result;
}

/// At the largest extents of the optimization profile.
std::vector<TensorView> views(const nvinfer1::DynamicPluginTensorDesc* tensors, size_t count) {
  std::vector<TensorView> result;
  for (size_t i = 0; i < count; ++i) result.push_back(view(tensors[i].max, tensors[i].desc.type));
  return result;
}

bool has_counts(const OperatorTable& table, int32_t num_inputs, int32_t num_outputs) {
  return num_inputs == static_cast<int32_t>(table.inputs.size()) &&
         num_outputs == static_cast<int32_t>(table.outputs.size());
}

/// As Operator::bind says it, for the calls that come before shapes are known.
Status wrong_counts(const OperatorTable& table, int32_t num_inputs, int32_t num_outputs) {
  return error(table.type, ": expected ", table.inputs.size(), " inputs and ", table.outputs.size(), " outputs, got ",
               num_inputs, " and ", num_outputs);
}

/// The tensor rule at a position that counts inputs, then outputs.
const TensorRule& rule_at(const OperatorTable& table, size_t position) {
  return position < table.inputs.size() ? table.inputs[position] : table.outputs[position - table.inputs.size()];
}

/// Position of the first tensor whose type is the activation type.
size_t first_activation(const OperatorTable& table) {
  size_t position = 0;
  while (rule_at(table, position).dtype != DataType::kActivation) ++position;
  return position;
}

/// The extent of an input that defines the dimension, or null.
const nvinfer1::IDimensionExpr* defining_extent(const OperatorTable& table, const nvinfer1::DimsExprs* inputs,
                                                int32_t dimension) {
  for (size_t i = 0; i < table.inputs.size(); ++i) {
    for (size_t axis = 0; axis < table.inputs[i].shape.size(); ++axis) {
      if (table.inputs[i].shape[axis].dimension == dimension) return inputs[i].d[axis];
    }
  }
  return nullptr;
}

}  // namespace

Plugin::Plugin(Operator op) : op_(std::move(op)) {
  for (const Attribute& attribute : op_.table().attributes) {
    if (attribute.is_float) {
      fields_.emplace_back(attribute.name, &op_.floats()[attribute.index], nvinfer1::PluginFieldType::kFLOAT32, 1);
    } else {
      fields_.emplace_back(attribute.name, &op_.integers()[attribute.index], nvinfer1::PluginFieldType::kINT64, 1);
    }
  }
  field_collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  // TensorRT owns the clone and deletes it.
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return std::make_unique<Plugin>(op_).release(); });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept { return clone(); }

int32_t Plugin::getOutputDataTypes(nvinfer1::DataType* output_types, int32_t num_outputs,
                                   const nvinfer1::DataType* input_types, int32_t num_inputs) const noexcept {
  return guarded<int32_t>(1, [&] {
    const OperatorTable& table = op_.table();
    if (!has_counts(table, num_inputs, num_outputs)) return return_code(wrong_counts(table, num_inputs, num_outputs));
    const size_t first = first_activation(table);
    const bool is_given = first < table.inputs.size();
    const nvinfer1::DataType activation = is_given ? input_types[first] : to_trt(op_.activations().front());
    for (int32_t i = 0; i < num_outputs; ++i) output_types[i] = to_trt(table.outputs[i].dtype, activation);
    return 0;
  });
}

int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                const nvinfer1::DimsExprs* /*shape_inputs*/, int32_t /*num_shape_inputs*/,
                                nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                                nvinfer1::IExprBuilder& builder) noexcept {
  return guarded<int32_t>(1, [&] {
    const OperatorTable& table = op_.table();
    if (!has_counts(table, num_inputs, num_outputs)) return return_code(wrong_counts(table, num_inputs, num_outputs));
    for (int32_t i = 0; i < num_inputs; ++i) {
      const TensorRule& rule = table.inputs[i];
      if (inputs[i].nbDims != static_cast<int32_t>(rule.shape.size())) {
        return return_code(Status(error(table.type, ": ", rule.name, " has ", inputs[i].nbDims,
                                        " dimensions, expected ", rule.shape.size())));
      }
    }
    for (int32_t i = 0; i < num_outputs; ++i) {
      const TensorRule& rule = table.outputs[i];
      outputs[i].nbDims = static_cast<int32_t>(rule.shape.size());
      for (size_t axis = 0; axis < rule.shape.size(); ++axis) {
        const Extent& extent = rule.shape[axis];
        outputs[i].d[axis] = extent.dimension == kNone ? builder.constant(op_.constant(extent))
                                                       : defining_extent(table, inputs, extent.dimension);
      }
    }
    return 0;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                       int32_t num_inputs, int32_t num_outputs) noexcept {
  const OperatorTable& table = op_.table();
  if (!has_counts(table, num_inputs, num_outputs)) return false;
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const DataType expected = rule_at(table, static_cast<size_t>(position)).dtype;
  if (expected != DataType::kActivation) return from_trt(tensor.type) == expected;
  const size_t first = first_activation(table);
  if (static_cast<size_t>(position) > first) return tensor.type == tensors[first].desc.type;
  for (const DataType shipped : op_.activations()) {
    if (from_trt(tensor.type) == shipped) return true;
  }
  return false;
}

int32_t Plugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t num_outputs) noexcept {
  return guarded<int32_t>(
      1, [&] { return return_code(op_.bind(views(inputs, num_inputs), views(outputs, num_outputs))); });
}

size_t Plugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t num_outputs) const noexcept {
  return guarded<size_t>(0, [&]() -> size_t {
    const Expected<Call> call = op_.bind(views(inputs, num_inputs), views(outputs, num_outputs));
    return return_code(call) == 0 ? static_cast<size_t>(op_.workspaces(*call).bytes) : 0;
  });
}

int32_t Plugin::onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t num_inputs,
                              const nvinfer1::PluginTensorDesc* outputs, int32_t num_outputs) noexcept {
  return guarded<int32_t>(1, [&] {
    const Expected<Call> call = op_.bind(views(inputs, num_inputs), views(outputs, num_outputs));
    return return_code(call) == 0 ? return_code(launcher_.prepare(op_, *call)) : 1;
  });
}

int32_t Plugin::enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  return guarded<int32_t>(1, [&] {
    const size_t num_inputs = op_.table().inputs.size();
    const size_t num_outputs = op_.table().outputs.size();
    const std::vector<TensorView> input_views = views(input_descs, num_inputs);
    const Expected<Call> call = op_.bind(input_views, views(output_descs, num_outputs));
    if (return_code(call) != 0) return 1;
    const Buffers buffers{{inputs, num_inputs}, {outputs, num_outputs}, workspace};
    return return_code(launcher_.run(op_, *call, input_views, buffers, stream));
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return &field_collection_; }

}  // namespace sala::trt
