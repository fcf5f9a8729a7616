// The step on a GPU that the bundle was built for: its plan in TensorRT, of either flavour.

#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "engines/tensorrt/loaded_plan.h"
#include "sala/engine.h"
#include "sala/model.h"
#include "weights/weight_source.h"

namespace sala::tensorrt {

class TensorRtEngine final : public Engine {
 public:
  /// Finds the GPU and the library, proves the plan, loads it and uploads the weights. kDeviceMissing,
  /// kDeviceUnsuitable, kLibraryMissing and kLibraryUnusable say that the bundle cannot run on this machine's GPU, if
  /// it has one.
  static Expected<std::shared_ptr<const Engine>> create(const Bundle& bundle, const LoadOptions& options,
                                                        const WeightSource& source);

  std::string_view name() const override { return "tensorrt"; }
  std::string_view precision() const override { return precision_; }
  std::span<const TensorSpec> inputs() const override { return inputs_; }
  std::span<const TensorSpec> outputs() const override { return outputs_; }
  EngineLimits limits() const override { return limits_; }
  Memory& memory() const override { return plan_->cache_memory(); }
  Expected<std::unique_ptr<Execution>> create_execution(std::span<const CacheBinding> caches,
                                                        CacheContents contents) const override;

 private:
  TensorRtEngine(std::unique_ptr<const LoadedPlan> plan, const Manifest& manifest);

  /// Those of the executions that there are, else new ones.
  Expected<std::shared_ptr<StepBuffers>> step_buffers() const;

  std::unique_ptr<const LoadedPlan> plan_;
  mutable std::mutex mutex_;
  mutable std::weak_ptr<StepBuffers> step_buffers_;
  std::string precision_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  EngineLimits limits_;
};

}  // namespace sala::tensorrt
