#include "sala/model.h"

#include <algorithm>

#include "bundle/bundle.h"
#include "runtimes.h"
#include "session/model_data.h"
#include "session/session_core.h"
#include "session/state_file.h"
#include "weights/weight_source.h"

namespace sala {

namespace {

constexpr int32_t kMostThreads = 1024;

Expected<std::unique_ptr<WeightSource>> source_of(const Bundle& bundle, const LoadOptions& options) {
  return options.weights.empty() ? WeightSource::of_bundle(bundle)
                                 : WeightSource::of_checkpoint(options.weights, bundle.manifest, options);
}

/// The last name of a path, which may end with a slash.
std::string name_of_directory(const std::filesystem::path& path) {
  std::error_code ignored;  // without a current directory there is no better name either
  const auto whole = std::filesystem::absolute(path, ignored).lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
}

/// Of the model with the weights that were loaded.
Expected<ModelConfig> config_of(const Manifest& manifest, const LoadOptions& options, const WeightSource& source) {
  ModelConfig config = manifest.config;
  if (source.is_of_bundle()) return config;
  const auto fingerprint = source.fingerprint(options);
  if (!fingerprint) return fingerprint.error();
  config.fingerprint = *fingerprint;
  config.source = name_of_directory(options.weights);
  return config;
}

}  // namespace

Expected<CpuMath> cpu_math_of(std::string_view name) {
  if (name == "exact") return CpuMath::kExact;
  if (name == "fast") return CpuMath::kFast;
  return error(ErrorCode::kInvalidArgument, "cpu_math '", name, "' is unknown: choose exact or fast");
}

Expected<Model> Model::load(const std::filesystem::path& path, const LoadOptions& options) {
  if (options.threads < 0 || options.threads > kMostThreads) {
    return error(ErrorCode::kInvalidArgument, "threads is ", options.threads, ", expected 0 for all cores, or 1 to ",
                 kMostThreads);
  }
  SALA_RETURN_IF_ERROR(check_runtime(options.runtime));
  if (options.runtime == "tensorrt" && options.cpu_math == CpuMath::kFast) {
    return error(ErrorCode::kInvalidArgument,
                 "cpu_math is for the CPU, and the runtime tensorrt runs on a GPU: leave one of them out");
  }
  const auto bundle = Bundle::open(path, options.bundle_descriptor, options.manifest_sha256);
  if (!bundle) return bundle.error();
  if (options.verify_hashes) SALA_RETURN_IF_ERROR(bundle->verify_hashes());
  const auto source = source_of(*bundle, options);
  if (!source) return source.error();
  std::string reason;
  auto engine = create_engine(*bundle, options, **source, reason);
  if (!engine) return engine.error();
  auto config = config_of(bundle->manifest, options, **source);
  if (!config) return config.error();
  return create(*std::move(config), *std::move(engine), std::move(reason));
}

Expected<Model> Model::create(ModelConfig config, std::shared_ptr<const Engine> engine) {
  return create(std::move(config), std::move(engine), {});
}

Expected<Model> Model::create(ModelConfig config, std::shared_ptr<const Engine> engine, std::string runtime_reason) {
  auto step = StepInterface::create(config, engine->inputs(), engine->outputs());
  if (!step) return step.error();
  return Model(std::make_shared<const ModelData>(ModelData{std::move(config), std::move(engine), *std::move(step),
                                                           std::move(runtime_reason), paged_host_memory()}));
}

const ModelConfig& Model::config() const { return data_->config; }

const Engine& Model::engine() const { return *data_->engine; }

const std::string& Model::runtime_reason() const { return data_->runtime_reason; }

int64_t Model::cache_bytes() const { return data_->engine->memory().used_bytes(); }

int64_t Model::default_max_context() const {
  return std::min(data_->config.max_position_embeddings, data_->engine->limits().max_context);
}

Expected<Session> Model::create_session(const SessionOptions& options) const {
  auto core = SessionCore::create(data_, options);
  if (!core) return core.error();
  return Session(*std::move(core));
}

Expected<int64_t> Model::state_bytes(int64_t tokens) const { return sala::state_bytes(*data_, tokens); }

Status Model::check(const GenerateOptions& options) const { return check_generate(options, data_->config); }

Expected<Session> Model::restore(const std::filesystem::path& state_file, const SessionOptions& options) const {
  auto core = restore_state(state_file, data_, options);
  if (!core) return core.error();
  return Session(*std::move(core));
}

Expected<Session> Model::restore_parts(std::span<const std::filesystem::path> rows,
                                       const std::filesystem::path& checkpoint, const SessionOptions& options,
                                       const std::function<bool(size_t part)>& on_part) const {
  auto core = sala::restore_parts(rows, checkpoint, data_, options, on_part);
  if (!core) return core.error();
  return Session(*std::move(core));
}

}  // namespace sala
