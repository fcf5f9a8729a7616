#include "sala/model.h"

#include <algorithm>

#include "engines/onnxruntime/engine.h"
#include "engines/tensorrt/engine.h"
#include "engines/tensorrt/library.h"
#include "manifest.h"
#include "model_data.h"
#include "session_core.h"
#include "state_file.h"

namespace sala {

namespace {

Expected<std::shared_ptr<const Engine>> onnxruntime_engine(const std::filesystem::path& bundle,
                                                           const Manifest& manifest, const LoadOptions& options,
                                                           const std::string& reason) {
  if (!manifest.weights_included) {
    const EngineEntry& engine = manifest.engine;
    return error(ErrorCode::kWeightsMissing, bundle.string(),
                 " was built with --no-weights, so only its engine can run: it needs ", engine.gpu_name,
                 " (compute capability ", engine.compute_capability, ") and ", tensorrt::title(engine),
                 "; for the CPU, build the bundle with weights", reason.empty() ? "" : ". Here: ", reason);
  }
  return OnnxRuntimeEngine::create(bundle, manifest, options);
}

/// Whether an engine could not be made because this machine lacks what it is for, and not because something is broken.
bool is_for_elsewhere(const Error& error) {
  return error.code == ErrorCode::kDeviceMissing || error.code == ErrorCode::kDeviceUnsuitable ||
         error.code == ErrorCode::kLibraryMissing || error.code == ErrorCode::kLibraryUnusable;
}

}  // namespace

Expected<Runtime> runtime_from_name(std::string_view name) {
  if (name == "auto") return Runtime::kAuto;
  if (name == "onnxruntime") return Runtime::kOnnxRuntime;
  if (name == "tensorrt") return Runtime::kTensorRt;
  return error(ErrorCode::kInvalidArgument, "runtime '", name, "' is unknown: choose auto, tensorrt or onnxruntime");
}

Expected<Model> Model::load(const std::filesystem::path& bundle, const LoadOptions& options) {
  auto manifest = read_manifest(bundle);
  if (!manifest) return manifest.error();
  if (options.verify_hashes) SALA_RETURN_IF_ERROR(verify_hashes(bundle, *manifest));
  std::string reason;
  if (options.runtime != Runtime::kOnnxRuntime) {
    auto engine = tensorrt::TensorRtEngine::create(bundle, *manifest, options.tensorrt);
    if (engine) return create(std::move(manifest->config), *std::move(engine));
    if (options.runtime == Runtime::kTensorRt || !is_for_elsewhere(engine.error())) return engine.error();
    reason = engine.error().message;
  }
  auto engine = onnxruntime_engine(bundle, *manifest, options, reason);
  if (!engine) return engine.error();
  return create(std::move(manifest->config), *std::move(engine), std::move(reason));
}

Expected<Model> Model::create(ModelConfig config, std::shared_ptr<const Engine> engine) {
  return create(std::move(config), std::move(engine), {});
}

Expected<Model> Model::create(ModelConfig config, std::shared_ptr<const Engine> engine, std::string runtime_reason) {
  auto step = StepInterface::create(config, *engine);
  if (!step) return step.error();
  return Model(std::make_shared<const ModelData>(
      ModelData{std::move(config), std::move(engine), *std::move(step), std::move(runtime_reason)}));
}

const ModelConfig& Model::config() const { return data_->config; }

const Engine& Model::engine() const { return *data_->engine; }

const std::string& Model::runtime_reason() const { return data_->runtime_reason; }

int64_t Model::default_max_context() const {
  return std::min(data_->config.max_position_embeddings, data_->engine->limits().max_context);
}

Expected<Session> Model::create_session(const SessionOptions& options) const {
  auto core = SessionCore::create(data_, options);
  if (!core) return core.error();
  return Session(*std::move(core));
}

Expected<Session> Model::restore(const std::filesystem::path& state_file, const SessionOptions& options) const {
  auto core = restore_state(state_file, data_, options);
  if (!core) return core.error();
  return Session(*std::move(core));
}

}  // namespace sala
