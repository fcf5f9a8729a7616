#include "trt/creator.h"

#include <memory>
#include <string_view>
#include <utility>

#include "trt/log.h"
#include "trt/plugin.h"

namespace sala::trt {
namespace {

nvinfer1::PluginFieldType field_type(const Attribute& attribute) {
  return attribute.is_float ? nvinfer1::PluginFieldType::kFLOAT32 : nvinfer1::PluginFieldType::kINT64;
}

const nvinfer1::PluginField* find(const nvinfer1::PluginFieldCollection& fields, std::string_view name) {
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    if (fields.fields[i].name == name) return &fields.fields[i];
  }
  return nullptr;
}

bool read(const nvinfer1::PluginField& field, float& value) {
  if (field.type != nvinfer1::PluginFieldType::kFLOAT32) return false;
  value = *static_cast<const float*>(field.data);
  return true;
}

/// ONNX parsers hand over 32 bits, whatever the creator declares; serialized engines hold 64.
bool read(const nvinfer1::PluginField& field, int64_t& value) {
  switch (field.type) {
    case nvinfer1::PluginFieldType::kINT32:
      value = *static_cast<const int32_t*>(field.data);
      return true;
    case nvinfer1::PluginFieldType::kINT64:
      value = *static_cast<const int64_t*>(field.data);
      return true;
    default:
      return false;
  }
}

}  // namespace

Creator::Creator(const OperatorTable& table) : table_(&table) {
  for (const Attribute& attribute : table.attributes) {
    fields_.emplace_back(attribute.name, nullptr, field_type(attribute), 1);
  }
  field_collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

const char* Creator::getPluginVersion() const noexcept { return kVersion; }
const char* Creator::getPluginNamespace() const noexcept { return kNamespace; }

Expected<Operator> Creator::parse(const nvinfer1::PluginFieldCollection& fields) const {
  std::vector<int64_t> integers(static_cast<size_t>(table_->num_integer_attributes));
  std::vector<float> floats(static_cast<size_t>(table_->num_float_attributes));
  for (const Attribute& attribute : table_->attributes) {
    const nvinfer1::PluginField* field = find(fields, attribute.name);
    if (field == nullptr || field->data == nullptr || field->length != 1) {
      return error(table_->type, ": attribute ", attribute.name, " is missing or not a single value");
    }
    const bool is_read =
        attribute.is_float ? read(*field, floats[attribute.index]) : read(*field, integers[attribute.index]);
    if (!is_read) {
      return error(table_->type, ": attribute ", attribute.name, " has TensorRT field type ",
                   static_cast<int32_t>(field->type), ", expected ", attribute.is_float ? "a float" : "an integer");
    }
  }
  return Operator::create(*table_, std::move(integers), std::move(floats));
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* /*name*/, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase /*phase*/) noexcept {
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&]() -> nvinfer1::IPluginV3* {
    Expected<Operator> op = parse(*fields);
    if (return_code(op) != 0) return nullptr;
    return std::make_unique<Plugin>(std::move(*op)).release();  // TensorRT owns and deletes it
  });
}

}  // namespace sala::trt
