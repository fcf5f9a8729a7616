#include "manifest.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "file.h"
#include "json_fields.h"
#include "sha256.h"

namespace sala {

namespace {

constexpr int64_t kSchemaVersion = 3;
constexpr int64_t kManifestLimitBytes = int64_t{64} << 20;

DType dtype_of(const Field& field) {
  const std::string name = field.string();
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt32, DType::kInt64}) {
    if (name_of(dtype) == name) return dtype;
  }
  field.expect(false, "is not an element type");
  return DType::kFloat32;
}

std::string path_of(const Field& field) {
  const std::string text = field.string();
  const std::filesystem::path path(text);
  bool inside = !path.empty() && path.is_relative() && text.find('\0') == std::string::npos;
  for (const auto& part : path) inside = inside && part != "..";
  field.expect(inside, "names a file outside the bundle");
  return text;
}

TensorSpec tensor_of(const Field& field) {
  field.allow_only({"name", "dtype", "shape"});
  TensorSpec spec{field["name"].string(), dtype_of(field["dtype"]), {}};
  for (const Field& extent : field["shape"].elements()) {
    spec.shape.push_back(extent.is_string() ? Extent{0, extent.string()} : Extent{extent.integer(0), {}});
  }
  return spec;
}

std::vector<TensorSpec> tensors_of(const Field& field) {
  std::vector<TensorSpec> result;
  for (const Field& element : field.elements()) result.push_back(tensor_of(element));
  return result;
}

std::vector<FileEntry> files_of(const Field& field) {
  std::vector<FileEntry> result;
  for (const Field& entry : field.elements()) {
    entry.allow_only({"path", "bytes", "sha256"});
    result.push_back({path_of(entry["path"]), entry["bytes"].integer(0), entry["sha256"].string()});
  }
  return result;
}

Dequantization dequantization_of(const Field& field) {
  field.allow_only({"precision", "columns", "scale", "scale_shape", "global_scale"});
  Dequantization result;
  const std::string precision = field["precision"].string();
  const std::array names{"fp8", "int8", "int4", "nvfp4"};
  const auto found = std::find(names.begin(), names.end(), precision);
  field["precision"].expect(found != names.end(), "is not a quantised precision");
  result.codes = static_cast<Codes>(std::min<size_t>(static_cast<size_t>(found - names.begin()), names.size() - 1));
  // Sizes of a dimension: their products stay below the range of int64.
  const auto extent = [](const Field& size) {
    const int64_t value = size.integer(1);
    size.expect(value <= INT32_MAX, "is no size of a weight");
    return std::clamp<int64_t>(value, 1, INT32_MAX);
  };
  result.columns = extent(field["columns"]);
  const Field scale = field["scale"];
  scale.allow_only({"file", "offset", "bytes", "dtype", "dequantization"});
  scale["dtype"].string();
  scale["dequantization"].expect(scale["dequantization"].is_null(), "scales are plain numbers");
  result.scale_file = path_of(scale["file"]);
  result.scale_offset = scale["offset"].integer(0);
  result.scale_bytes = scale["bytes"].integer(0);
  const auto blocks = field["scale_shape"].elements();
  field["scale_shape"].expect(blocks.size() == 2, "expected two numbers");
  if (blocks.size() == 2) {
    result.block_rows = extent(blocks[0]);
    result.block_columns = extent(blocks[1]);
  }
  result.global_scale = static_cast<float>(field["global_scale"].number());
  field["global_scale"].expect(std::isfinite(result.global_scale) && result.global_scale > 0.0f, "is no scale");
  return result;
}

WeightPart part_of(const Field& part) {
  part.allow_only({"file", "offset", "bytes", "dtype", "dequantization"});
  WeightPart result{path_of(part["file"]), part["offset"].integer(0), part["bytes"].integer(0), DType::kFloat32, {}};
  const Field how = part["dequantization"];
  if (how.is_null()) {
    result.dtype = dtype_of(part["dtype"]);
  } else {
    part["dtype"].string();
    result.dequantization = dequantization_of(how);
  }
  return result;
}

std::vector<WeightInput> weights_of(const Field& field) {
  std::vector<WeightInput> result;
  for (const Field& weight : field.elements()) {
    weight.allow_only({"spec", "parts"});
    WeightInput input{tensor_of(weight["spec"]), {}};
    for (const Field& part : weight["parts"].elements()) input.parts.push_back(part_of(part));
    result.push_back(std::move(input));
  }
  return result;
}

/// Every field of SalaConfig, also those that only the graph needs (sala_export/checkpoint/config.py).
void check_config(const Field& config, const Field& sparse) {
  config.allow_only({"vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                     "head_dim", "mixer_types", "sparse_config", "rms_norm_eps", "rope_theta", "scale_emb",
                     "scale_depth", "dim_model_base", "max_position_embeddings", "tie_word_embeddings", "bos_token_id",
                     "eos_token_id", "pad_token_id", "residual_depth"});
  for (const char* name : {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
                           "dim_model_base", "residual_depth"}) {
    config[name].integer(1);
  }
  for (const char* name : {"rms_norm_eps", "rope_theta", "scale_emb", "scale_depth"}) config[name].number();
  config["tie_word_embeddings"].flag();
  for (const char* name : {"bos_token_id", "pad_token_id"}) {
    if (!config[name].is_null()) config[name].integer(0);
  }
  for (const Field& mixer : config["mixer_types"].elements()) {
    const std::string name = mixer.string();
    mixer.expect(name == "minicpm4" || name == "lightning-attn", "is not a mixer");
  }
  sparse.allow_only({"kernel_size", "kernel_stride", "block_size", "topk", "window_size", "init_blocks", "dense_len"});
  const int64_t kernel_stride = std::max<int64_t>(1, sparse["kernel_stride"].integer(1));
  const int64_t block_size = std::max<int64_t>(1, sparse["block_size"].integer(1));
  sparse["kernel_size"].expect(sparse["kernel_size"].integer(1) > kernel_stride, "is not larger than kernel_stride");
  sparse["block_size"].expect(block_size % kernel_stride == 0, "is not a multiple of kernel_stride");
  sparse["window_size"].expect(sparse["window_size"].integer(0) % block_size == 0, "is not a multiple of block_size");
  sparse["topk"].expect(sparse["topk"].integer(1) > sparse["init_blocks"].integer(0),
                        "leaves no room for init_blocks and the query's own block");
  sparse["dense_len"].integer(-1);
}

ModelConfig config_of(const Field& model) {
  model.allow_only({"source", "config", "inv_freq", "fingerprint"});
  const Field config = model["config"];
  const Field sparse = config["sparse_config"];
  check_config(config, sparse);
  ModelConfig result;
  result.source = model["source"].string();
  result.fingerprint = model["fingerprint"].string();
  result.vocab_size = config["vocab_size"].integer(1);
  result.max_position_embeddings = config["max_position_embeddings"].integer(1);
  result.kernel_size = sparse["kernel_size"].integer(1);
  result.kernel_stride = sparse["kernel_stride"].integer(1);
  for (const Field& token : config["eos_token_id"].elements()) {
    const int64_t id = token.integer(0);
    token.expect(id < result.vocab_size, "is not a token of the vocabulary");
    result.eos_token_ids.push_back(static_cast<int32_t>(id));
  }
  for (const Field& frequency : model["inv_freq"].elements()) {
    const double value = frequency.number();
    frequency.expect(static_cast<double>(static_cast<float>(value)) == value, "is not an fp32 number");
    result.inv_freq.push_back(static_cast<float>(value));
  }
  const int64_t head_dim = config["head_dim"].integer(2);
  model["inv_freq"].expect(static_cast<int64_t>(result.inv_freq.size()) * 2 == head_dim,
                           "expected head_dim / 2 numbers");
  config["vocab_size"].expect(result.vocab_size <= INT32_MAX, "exceeds the range of token ids");
  for (const char* name : {"kernel_size", "kernel_stride"}) {
    sparse[name].expect(sparse[name].integer() <= INT32_MAX, "exceeds the range of positions");
  }
  return result;
}

void read_graph(const Field& graph, Manifest& manifest) {
  graph.allow_only({"file", "inputs", "outputs", "operators", "weights_included", "weights", "cpu"});
  manifest.needed_files.push_back(path_of(graph["file"]));
  manifest.inputs = tensors_of(graph["inputs"]);
  manifest.outputs = tensors_of(graph["outputs"]);
  for (const Field& node : graph["operators"].elements()) {
    node.allow_only({"layer", "type", "node"});
    node["layer"].integer(0);
    node["type"].string();
    node["node"].string();
  }
  manifest.weights_included = graph["weights_included"].flag();
  for (const FileEntry& weights : files_of(graph["weights"])) {
    if (manifest.weights_included) manifest.needed_files.push_back(weights.path);
  }
  const Field cpu = graph["cpu"];
  cpu.allow_only({"file", "inputs", "outputs", "weights"});
  manifest.cpu = {path_of(cpu["file"]), tensors_of(cpu["inputs"]), tensors_of(cpu["outputs"]),
                  weights_of(cpu["weights"])};
  manifest.needed_files.push_back(manifest.cpu.file);
}

ShardEntry shard_of(const Field& shard, std::vector<std::string>& needed_files) {
  shard.allow_only({"plan", "report", "log", "first_layer", "num_layers", "inputs", "outputs",
                    "plugin_library_serialized"});
  for (const char* name : {"plan", "report", "log"}) needed_files.push_back(path_of(shard[name]));
  return {path_of(shard["plan"]),
          shard["first_layer"].integer(0),
          shard["num_layers"].integer(1),
          tensors_of(shard["inputs"]),
          tensors_of(shard["outputs"]),
          shard["plugin_library_serialized"].flag()};
}

/// The name under which the residual stream enters a layer from another shard.
std::string stream_name(int64_t layer) { return "hidden_states." + std::to_string(layer); }

bool has(const std::vector<TensorSpec>& tensors, const std::string& name, const TensorSpec** found) {
  const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const auto& spec) { return spec.name == name; });
  *found = at == tensors.end() ? nullptr : &*at;
  return at != tensors.end();
}

/// Shards hold each layer once, and what one gives is what the next takes.
std::vector<ShardEntry> shards_of(const Field& field, int64_t layers, std::vector<std::string>& needed_files) {
  std::vector<ShardEntry> result;
  int64_t next = 0;
  for (const Field& element : field.elements()) {
    ShardEntry shard = shard_of(element, needed_files);
    element["first_layer"].expect(shard.first_layer == next, "does not follow the shard before");
    element["num_layers"].expect(shard.num_layers <= layers - std::min(next, layers), "exceeds the model's layers");
    next = shard.first_layer + std::min(shard.num_layers, layers);
    const TensorSpec* given = nullptr;
    const TensorSpec* taken = nullptr;
    if (!result.empty()) {
      const std::string name = stream_name(shard.first_layer);
      const bool passes = has(result.back().outputs, name, &given) && has(shard.inputs, name, &taken);
      element["inputs"].expect(passes && given->dtype == taken->dtype && given->shape == taken->shape,
                               "does not take the hidden_states that the shard before gives");
      element["plugin_library_serialized"].expect(!shard.plugin_library_serialized,
                                                  "only the first shard may carry the plugin library");
    }
    result.push_back(std::move(shard));
  }
  field.expect(next == layers, "does not hold every layer of the model");
  return result;
}

std::map<std::string, ProfileRanges, std::less<>> profiles_of(const Field& field) {
  std::map<std::string, ProfileRanges, std::less<>> result;
  for (const auto& [profile, symbols] : field.members()) {
    ProfileRanges& ranges = result[profile];
    for (const auto& [symbol, range] : symbols.members()) {
      range.allow_only({"min", "opt", "max"});
      const int64_t min = range["min"].integer(0);
      const int64_t opt = range["opt"].integer(0);
      const int64_t max = range["max"].integer(0);
      range.expect(min <= opt && opt <= max, "min, opt and max do not ascend");
      ranges[symbol] = {min, max};
    }
  }
  return result;
}

EngineEntry engine_of(const Field& engine, int64_t layers, std::vector<std::string>& needed_files) {
  engine.allow_only({"shards", "gpu", "gpu_name", "compute_capability", "tensorrt_flavour", "tensorrt_version",
                     "plugin_library_sha256", "profiles", "device_memory_bytes"});
  engine["gpu"].string();
  for (const auto& [part, bytes] : engine["device_memory_bytes"].members()) bytes.integer(0);
  const std::string flavour = engine["tensorrt_flavour"].string();
  engine["tensorrt_flavour"].expect(flavour == "rtx" || flavour == "tensorrt", "is neither rtx nor tensorrt");
  return {shards_of(engine["shards"], layers, needed_files),
          engine["gpu_name"].string(),
          engine["compute_capability"].string(),
          flavour,
          engine["tensorrt_version"].string(),
          engine["plugin_library_sha256"].string(),
          profiles_of(engine["profiles"])};
}

/// Files that a graph needs must be listed, and parts lie inside them.
Status check_references(const Manifest& manifest, const std::string& where) {
  const auto damaged = [&](const auto&... parts) {
    return error(ErrorCode::kBundleDamaged, where, ": ", parts..., " (build the bundle again)");
  };
  for (const std::string& name : manifest.needed_files) {
    if (manifest.file(name) == nullptr) return damaged("it needs ", name, ", which is not among files");
  }
  if (!manifest.weights_included) return success();
  const auto check = [&](const WeightInput& weight, const std::string& path, int64_t offset, int64_t bytes) -> Status {
    const FileEntry* file = manifest.file(path);
    if (file == nullptr) return damaged("weight ", weight.spec.name, " is in ", path, ", which is not among files");
    if (bytes > file->bytes || offset > file->bytes - bytes) {
      return damaged("weight ", weight.spec.name, " ends behind the end of ", path);
    }
    return success();
  };
  for (const WeightInput& weight : manifest.cpu.weights) {
    for (const WeightPart& part : weight.parts) {
      SALA_RETURN_IF_ERROR(check(weight, part.file, part.offset, part.bytes));
      if (!part.dequantization) continue;
      const Dequantization& how = *part.dequantization;
      SALA_RETURN_IF_ERROR(check(weight, how.scale_file, how.scale_offset, how.scale_bytes));
    }
  }
  return success();
}

}  // namespace

const FileEntry* Manifest::file(const std::string& path) const {
  const auto found =
      std::find_if(files.begin(), files.end(), [&](const FileEntry& entry) { return entry.path == path; });
  return found == files.end() ? nullptr : &*found;
}

Expected<Manifest> parse_manifest(std::string_view text, const std::string& where) {
  const auto document = parse_json(text);
  if (!document || !document->is_object()) {
    return error(ErrorCode::kBundleDamaged, where, " is not a JSON object: the bundle is damaged, build it again");
  }
  std::string problem;
  const Field root(*document, "", problem);
  const int64_t version = root["schema_version"].integer();
  if (problem.empty() && version != kSchemaVersion) {
    return error(ErrorCode::kBundleSchema, where, " has schema_version ", version, ", this release reads ",
                 kSchemaVersion, version > kSchemaVersion ? ": update sala-export" : ": build it again");
  }
  root.allow_only({"schema_version", "created_by", "model", "precision", "graph", "engine", "text", "files"});
  Manifest manifest;
  root["created_by"].string();
  manifest.config = config_of(root["model"]);
  manifest.precision = root["precision"].string();
  const std::array precisions{"bf16", "fp16", "fp8", "int8", "int4", "nvfp4"};
  root["precision"].expect(std::find(precisions.begin(), precisions.end(), manifest.precision) != precisions.end(),
                           "is not a precision");
  read_graph(root["graph"], manifest);
  const auto layers = root["model"]["config"]["mixer_types"].elements();
  manifest.engine = engine_of(root["engine"], static_cast<int64_t>(layers.size()), manifest.needed_files);
  for (const Field& file : root["text"].elements()) manifest.needed_files.push_back(path_of(file));
  manifest.files = files_of(root["files"]);
  if (!problem.empty()) {
    return error(ErrorCode::kBundleDamaged, where, ": ", problem, " (build the bundle again)");
  }
  SALA_RETURN_IF_ERROR(check_references(manifest, where));
  return manifest;
}

Expected<Manifest> read_manifest(const std::filesystem::path& bundle) {
  std::error_code ignored;  // a path that cannot be examined is no directory
  if (!std::filesystem::is_directory(bundle, ignored)) {
    return error(ErrorCode::kBundleMissing, bundle.string(),
                 " is not a directory: a bundle is the directory that `sala-export build` writes");
  }
  const std::filesystem::path path = bundle / kManifestFile;
  if (!std::filesystem::exists(path, ignored)) {
    return error(ErrorCode::kBundleMissing, bundle.string(), " has no ", kManifestFile, ": it is not a bundle");
  }
  const auto text = read_file(path, kManifestLimitBytes, ErrorCode::kBundleDamaged);
  if (!text) return text.error();
  auto manifest = parse_manifest(*text, path.string());
  if (!manifest) return manifest;
  for (const FileEntry& entry : manifest->files) {
    const auto file = File::open(bundle / entry.path, ErrorCode::kBundleDamaged);
    if (!file) return file.error();
    if (file->bytes() != entry.bytes) {
      return error(ErrorCode::kBundleDamaged, file->path().string(), " has ", file->bytes(), " bytes, ", kManifestFile,
                   " says ", entry.bytes, ": copy the bundle again");
    }
  }
  return manifest;
}

Status verify_hashes(const std::filesystem::path& bundle, const Manifest& manifest) {
  for (const FileEntry& entry : manifest.files) {
    const auto file = File::open(bundle / entry.path, ErrorCode::kBundleDamaged);
    if (!file) return file.error();
    const auto digest = sha256(*file);
    if (!digest) return digest.error();
    if (*digest != entry.sha256) {
      return error(ErrorCode::kBundleDamaged, file->path().string(), " has another SHA-256 than ", kManifestFile,
                   " says: it was changed or damaged, copy the bundle again");
    }
  }
  return success();
}

}  // namespace sala
