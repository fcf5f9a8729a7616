// The step on the CPU: graph.cpu of a bundle in ONNX Runtime, in fp32, with the operators of libsala_ort.so.

#pragma once

#include <memory>
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
  std::string_view precision() const override { return "fp32"; }
  std::span<const TensorSpec> inputs() const override { return inputs_; }
  std::span<const TensorSpec> outputs() const override { return outputs_; }
  EngineLimits limits() const override;
  Memory& memory() const override { return *memory_; }
  Expected<std::unique_ptr<Execution>> create_execution(std::span<const CacheBinding> caches,
                                                        CacheContents contents) const override;

 private:
  explicit OnnxRuntimeEngine(OnnxRuntimeLibrary library)
      : library_(library),
        environment_(nullptr, library.api().ReleaseEnv),
        session_(nullptr, library.api().ReleaseSession) {}

  Status open_graph(const Bundle& bundle, const LoadOptions& options);
  Status check_inputs(const Manifest& manifest) const;

  std::unique_ptr<Memory> memory_ = paged_host_memory();
  OnnxRuntimeLibrary library_;
  OrtPtr<OrtEnv> environment_;
  OrtPtr<OrtSession> session_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  std::vector<Weight> weights_;
};

}  // namespace sala
