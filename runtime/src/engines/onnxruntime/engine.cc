#include "engines/onnxruntime/engine.h"

#include <algorithm>

#include "base/file.h"
#include "base/library_search.h"
#include "base/sha256.h"
#include "engines/onnxruntime/execution.h"

namespace sala {

namespace {

constexpr const char* kOperatorsLibrary = "libsala_ort.so";
constexpr int64_t kGraphLimitBytes = int64_t{1} << 30;

// Activations of one step take about a hundred kilobytes per token at published sizes: 512 tokens keep them small and
// give matrix products enough rows.
constexpr int64_t kDefaultChunkTokens = 512;
constexpr int64_t kMaxChunkTokens = 65536;
constexpr int64_t kMaxBatch = 64;
constexpr int64_t kMaxLogitRows = 256;
// Positions are int32, and a step may end at the last one.
constexpr int64_t kMaxContext = INT32_MAX - kMaxChunkTokens;

Expected<std::filesystem::path> operators_library(const LoadOptions& options) {
  const auto path = options.operators_library.empty() ? find_library(kOperatorsLibrary, "sala_export/lib")
                                                      : options.operators_library;
  if (path.empty()) {
    return error(ErrorCode::kLibraryMissing, kOperatorsLibrary,
                 " was not found: install sala-export again, or give the path of the library");
  }
  return path;
}

/// The bytes of the graph, proved to be those that were exported.
Expected<std::string> read_graph(const Bundle& bundle, const std::string& name) {
  const File& file = bundle.file(name);
  auto graph = read_file(file, kGraphLimitBytes);
  if (graph && sha256(*graph) != bundle.manifest.file(name)->sha256) {
    return error(ErrorCode::kBundleDamaged, file.path().string(), " has another SHA-256 than ", kManifestFile,
                 " says: it was changed or damaged, copy the bundle again");
  }
  return graph;
}

}  // namespace

Expected<std::shared_ptr<const Engine>> OnnxRuntimeEngine::create(const Bundle& bundle, const LoadOptions& options,
                                                                  const WeightSource& source) {
  const Manifest& manifest = bundle.manifest;
  auto library = OnnxRuntimeLibrary::load(options.onnxruntime_library);
  if (!library) return library.error();
  const CpuForm& form = manifest.cpu.form(options.cpu_math);
  // What the fast form saves goes on on a GPU, and the other way round.
  const std::string precision = options.cpu_math == CpuMath::kFast ? manifest.precision : "fp32";
  std::shared_ptr<OnnxRuntimeEngine> engine(new OnnxRuntimeEngine(*library, form, precision));
  SALA_RETURN_IF_ERROR(engine->open_graph(bundle, form.file, options));
  SALA_RETURN_IF_ERROR(engine->check_inputs(form.file, manifest.cpu.weights));
  auto weights = load_weights(manifest, source, options);
  if (!weights) return weights.error();
  engine->weights_ = *std::move(weights);
  return std::shared_ptr<const Engine>(std::move(engine));
}

Status OnnxRuntimeEngine::open_graph(const Bundle& bundle, const std::string& name, const LoadOptions& options) {
  const auto operators = operators_library(options);
  if (!operators) return operators.error();
  const auto graph = read_graph(bundle, name);
  if (!graph) return graph.error();
  const OrtApi& api = library_.api();

  // Failures come back as statuses; ONNX Runtime's own log would go to stderr.
  OrtEnv* environment = nullptr;
  SALA_RETURN_IF_ERROR(library_.check(api.CreateEnv(ORT_LOGGING_LEVEL_FATAL, "sala", &environment), "start"));
  environment_.reset(environment);

  OrtSessionOptions* created = nullptr;
  SALA_RETURN_IF_ERROR(library_.check(api.CreateSessionOptions(&created), "make session options"));
  const OrtPtr<OrtSessionOptions> session_options(created, api.ReleaseSessionOptions);
  SALA_RETURN_IF_ERROR(library_.check(api.SetIntraOpNumThreads(created, options.threads), "set its threads"));
  // Memory patterns are kept per input shape, and a last chunk can have any.
  SALA_RETURN_IF_ERROR(library_.check(api.DisableMemPattern(created), "disable memory patterns"));
  if (auto registered = library_.check(api.RegisterCustomOpsLibrary_V2(created, operators->c_str()), "load operators");
      !registered) {
    return error(ErrorCode::kLibraryUnusable, operators->string(), ": ", registered.error().message);
  }
  OrtSession* session = nullptr;
  if (auto opened = library_.check(
          api.CreateSessionFromArray(environment, graph->data(), graph->size(), created, &session), "open the graph");
      !opened) {
    return error(ErrorCode::kLibraryUnusable, bundle.file(name).path().string(), ": ", opened.error().message);
  }
  session_.reset(session);
  return success();
}

Status OnnxRuntimeEngine::check_inputs(const std::string& graph, const std::vector<WeightInput>& weights) const {
  const OrtApi& api = library_.api();
  OrtAllocator* allocator = nullptr;
  SALA_RETURN_IF_ERROR(library_.check(api.GetAllocatorWithDefaultOptions(&allocator), "find its allocator"));
  size_t count = 0;
  SALA_RETURN_IF_ERROR(library_.check(api.SessionGetInputCount(session_.get(), &count), "count inputs"));
  std::vector<std::string> actual;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    SALA_RETURN_IF_ERROR(library_.check(api.SessionGetInputName(session_.get(), i, allocator, &name), "name inputs"));
    actual.emplace_back(name);
    SALA_RETURN_IF_ERROR(library_.check(api.AllocatorFree(allocator, name), "free memory"));
  }
  std::vector<std::string> expected;
  for (const TensorSpec& input : inputs_) expected.push_back(input.name);
  for (const WeightInput& weight : weights) expected.push_back(weight.spec.name);
  std::sort(actual.begin(), actual.end());
  std::sort(expected.begin(), expected.end());
  if (actual != expected) {
    return error(ErrorCode::kBundleDamaged, graph, " has other inputs than ", kManifestFile,
                 " says (build the bundle again)");
  }
  return success();
}

EngineLimits OnnxRuntimeEngine::limits() const {
  return {.max_context = kMaxContext,
          .max_chunk_tokens = kMaxChunkTokens,
          .default_chunk_tokens = kDefaultChunkTokens,
          .max_batch = kMaxBatch,
          .max_logit_rows = kMaxLogitRows};
}

Expected<std::unique_ptr<Execution>> OnnxRuntimeEngine::create_execution(std::span<const CacheBinding> caches,
                                                                         CacheContents) const {
  return OnnxRuntimeExecution::create(library_, *session_, weights_, caches);
}

}  // namespace sala
