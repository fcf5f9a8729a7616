// Makes plugins from ONNX attributes and from serialized engines.

#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "common/operator.h"

namespace sala::trt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const OperatorTable& table);

  /// Null, after logging one line, unless every attribute of the contract is among the fields with the right type.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &field_collection_; }
  const char* getPluginName() const noexcept override { return table_->type; }
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

 private:
  Expected<Operator> parse(const nvinfer1::PluginFieldCollection& fields) const;

  const OperatorTable* table_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection field_collection_{};
};

}  // namespace sala::trt
