// The step on the CPU: a form of graph.cpu of a bundle in ONNX Runtime, with the operators of libsala_ort.so.

#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bundle/bundle.h"
#include "engines/onnxruntime/interface.h"
#include "engines/onnxruntime/library.h"
#include "sala/engine.h"
#include "sala/model.h"
#include "weights/weight_source.h"
#include "weights/weights.h"

namespace sala {

class OnnxRuntimeEngine final : public Engine {
 public:
  /// Loads the library, the operators, the graph and the weights.
  static Expected<std::shared_ptr<const Engine>> create(const Bundle& bundle, const LoadOptions& options,
                                                        const WeightSource& source);

  std::string_view name() const override { return "onnxruntime"; }
  std::string_view precision() const override { return precision_; }
  std::span<const TensorSpec> inputs() const override { return inputs_; }
  std::span<const TensorSpec> outputs() const override { return outputs_; }
  EngineLimits limits() const override;
  Memory& memory() const override { return *memory_; }
  Expected<std::unique_ptr<Execution>> create_execution(std::span<const CacheBinding> caches,
                                                        CacheContents contents) const override;

 private:
  OnnxRuntimeEngine(OnnxRuntimeLibrary library, const CpuForm& form, std::string precision)
      : library_(library),
        precision_(std::move(precision)),
        inputs_(form.inputs),
        outputs_(form.outputs),
        environment_(nullptr, library.api().ReleaseEnv),
        session_(nullptr, library.api().ReleaseSession) {}

  Status open_graph(const Bundle& bundle, const std::string& name, const LoadOptions& options);
  Status check_inputs(const std::string& graph, const std::vector<WeightInput>& weights) const;

  std::unique_ptr<Memory> memory_ = paged_host_memory();
  OnnxRuntimeLibrary library_;
  std::string precision_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  OrtPtr<OrtEnv> environment_;
  OrtPtr<OrtSession> session_;
  Weights weights_;
};

}  // namespace sala
