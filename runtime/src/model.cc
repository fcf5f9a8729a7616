#include "sala/model.h"

#include <algorithm>

#include "engines/onnxruntime/engine.h"
#include "manifest.h"
#include "model_data.h"
#include "session_core.h"
#include "state_file.h"

namespace sala {

Expected<Runtime> runtime_from_name(std::string_view name) {
  if (name == "auto") return Runtime::kAuto;
  if (name == "onnxruntime") return Runtime::kOnnxRuntime;
  return error(ErrorCode::kInvalidArgument, "runtime '", name, "' is unknown: choose auto or onnxruntime");
}

Expected<Model> Model::load(const std::filesystem::path& bundle, const LoadOptions& options) {
  auto manifest = read_manifest(bundle);
  if (!manifest) return manifest.error();
  if (!manifest->weights_included) {
    const EngineEntry& engine = manifest->engine;
    return error(ErrorCode::kWeightsMissing, bundle.string(),
                 " was built with --no-weights, so only its engine can run: it needs ", engine.gpu_name,
                 " (compute capability ", engine.compute_capability, ") and ",
                 engine.tensorrt_flavour == "rtx" ? "TensorRT for RTX " : "TensorRT ", engine.tensorrt_version,
                 "; for the CPU, build the bundle with weights");
  }
  if (options.verify_hashes) SALA_RETURN_IF_ERROR(verify_hashes(bundle, *manifest));
  auto engine = OnnxRuntimeEngine::create(bundle, *manifest, options);
  if (!engine) return engine.error();
  return create(std::move(manifest->config), *std::move(engine));
}

Expected<Model> Model::create(ModelConfig config, std::shared_ptr<const Engine> engine) {
  auto step = StepInterface::create(config, *engine);
  if (!step) return step.error();
  return Model(std::make_shared<const ModelData>(ModelData{std::move(config), std::move(engine), *std::move(step)}));
}

const ModelConfig& Model::config() const { return data_->config; }

const Engine& Model::engine() const { return *data_->engine; }

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
