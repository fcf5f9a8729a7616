// The bindings of a session or batch: weights and caches for good, token inputs and logits for every step.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engines/onnxruntime/interface.h"
#include "engines/onnxruntime/library.h"
#include "sala/engine.h"
#include "weights/weights.h"

namespace sala {

class OnnxRuntimeExecution final : public Execution {
 public:
  /// `session` and `weights` outlive the execution.
  static Expected<std::unique_ptr<Execution>> create(OnnxRuntimeLibrary library, OrtSession& session,
                                                     const Weights& weights, std::span<const CacheBinding> caches);

  Status run(Profile profile, const StepInputs& step, std::span<float> logits) override;

 private:
  OnnxRuntimeExecution(OnnxRuntimeLibrary library, OrtSession& session, const Weights& weights)
      : library_(library),
        session_(session),
        weights_(weights),
        memory_info_(nullptr, library.api().ReleaseMemoryInfo),
        binding_(nullptr, library.api().ReleaseIoBinding) {}

  Status create_binding();
  Status bind_input(const Tensor& tensor);
  Status bind_output(const Tensor& tensor);
  Expected<OrtPtr<OrtValue>> value(const Tensor& tensor) const;

  OnnxRuntimeLibrary library_;
  OrtSession& session_;
  const Weights& weights_;
  OrtPtr<OrtMemoryInfo> memory_info_;
  OrtPtr<OrtIoBinding> binding_;
};

}  // namespace sala
