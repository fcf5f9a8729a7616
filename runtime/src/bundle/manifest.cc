#include "bundle/manifest.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <span>
#include <utility>

#include "base/json_fields.h"
#include "base/step_interface.h"
#include "bundle/model_config.h"
#include "sala/step_names.h"

namespace sala {

namespace {

constexpr int64_t kSchemaVersion = 6;
constexpr std::string_view kWordColumns = "word_columns";
constexpr size_t kMostDimensions = 8;  // as in TensorRT
constexpr std::string_view kPrecisions[] = {"bf16", "fp16", "fp8", "mxfp8", "int8", "int4", "nvfp4"};

/// The symbolic dimensions of a step, each with the most that it may be.
const SymbolSizes kSymbols = {{std::string(step_names::kBatch), 1},
                              {std::string(step_names::kTokens), INT32_MAX},
                              {std::string(step_names::kRows), INT32_MAX},
                              {std::string(step_names::kCapacity), INT32_MAX},
                              {std::string(step_names::kCapacityK1), INT32_MAX},
                              {std::string(step_names::kCapacityK2), INT32_MAX}};

DType dtype_of(const Field& field) {
  const std::string name = field.string();
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt32, DType::kInt64,
                            DType::kFloat8E4M3FN, DType::kFloat4E2M1FN, DType::kInt8, DType::kUInt8}) {
    if (name_of(dtype) == name) return dtype;
  }
  field.expect(false, "is not an element type");
  return DType::kFloat32;
}

/// Names of folders and a file, with one slash between each two, so that two paths never are one file.
std::string path_of(const Field& field) {
  const std::string text = field.string();
  bool is_inside = text.find('\0') == std::string::npos;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('/', begin), text.size());
    const std::string_view part = std::string_view(text).substr(begin, end - begin);
    is_inside = is_inside && !part.empty() && part != "." && part != "..";
    begin = end + 1;
  }
  field.expect(is_inside, "names a file outside the bundle, or not in the shortest way");
  return text;
}

std::vector<Field> extents_of(const Field& tensor) {
  auto extents = tensor["shape"].elements();
  tensor["shape"].expect(extents.size() <= kMostDimensions, "has more than 8 dimensions");
  return extents;
}

TensorSpec tensor_of(const Field& field) {
  field.allow_only({"name", "dtype", "shape"});
  TensorSpec spec{field["name"].string(), dtype_of(field["dtype"]), {}};
  for (const Field& extent : extents_of(field)) {
    spec.shape.push_back(extent.is_string() ? Extent{0, extent.string()} : Extent{extent.integer(1), {}});
    if (extent.is_string()) extent.expect(kSymbols.contains(spec.shape.back().symbol), "is not a dimension of a step");
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
    result.push_back({path_of(entry["path"]), entry["bytes"].integer(0), entry["sha256"].sha256()});
  }
  return result;
}

/// Whether an optional member has a value.
bool given(const Field& field, const char* name) { return field.has(name) && !field[name].is_null(); }

WeightPart part_of(const Field& part) {
  part.allow_only({"tensor", "rows", "factor"});
  WeightPart result{.tensor = part["tensor"].string()};
  if (given(part, "rows")) result.rows = part["rows"].integer(1);
  if (given(part, "factor")) {
    result.factor = part["factor"].string();
    part["factor"].expect(!result.factor.empty(), "is empty");
  }
  part.expect(result.factor.empty() || result.rows != 0, "has a factor without rows of scales");
  return result;
}

std::vector<WeightInput> weights_of(const Field& field) {
  std::vector<WeightInput> result;
  for (const Field& weight : field.elements()) {
    weight.allow_only({"spec", "parts", "layout"});
    WeightInput input{tensor_of(weight["spec"]), {}};
    if (given(weight, "layout")) {
      weight["layout"].expect(weight["layout"].string() == kWordColumns, "is not a layout");
      input.is_word_columns = true;
    }
    for (const Field& part : weight["parts"].elements()) input.parts.push_back(part_of(part));
    weight["parts"].expect(!input.parts.empty(), "is empty");
    weight["spec"].expect(input.bytes() > 0, "has a symbolic dimension, or takes more than memory");
    result.push_back(std::move(input));
  }
  return result;
}

StoredTensor stored_tensor_of(const Field& field) {
  field.allow_only({"file", "offset", "bytes", "dtype", "shape", "sha256", "fixed"});
  StoredTensor tensor;
  tensor.file = field["file"].string();
  tensor.offset = field["offset"].integer(0);
  tensor.bytes = field["bytes"].integer(0);
  tensor.dtype = dtype_of(field["dtype"]);
  field["dtype"].expect(tensor.dtype != DType::kFloat4E2M1FN, "is not a type of stored tensors");
  for (const Field& extent : extents_of(field)) tensor.shape.push_back(extent.integer(1));
  tensor.sha256 = field["sha256"].sha256();
  if (field.has("fixed")) tensor.fixed = field["fixed"].flag();
  field["bytes"].expect(tensor.bytes == bytes_of(tensor.dtype, elements_of(tensor.shape)),
                        "is not what its type and shape take");
  return tensor;
}

/// Tensors lie inside their files.
void read_weights(const Field& weights, Manifest& manifest) {
  weights.allow_only({"included", "files", "tensors"});
  manifest.weights_included = weights["included"].flag();
  std::map<std::string, int64_t> sizes;
  for (const Field& file : weights["files"].elements()) {
    file.allow_only({"path", "bytes"});
    manifest.weight_files.emplace_back(path_of(file["path"]), file["bytes"].integer(0));
    sizes.insert(manifest.weight_files.back());
  }
  for (const auto& [name, field] : weights["tensors"].members()) {
    const StoredTensor& tensor = manifest.tensors[name] = stored_tensor_of(field);
    const auto file = sizes.find(tensor.file);
    field.expect(file != sizes.end(), "is in " + tensor.file + ", which is not among weights.files");
    field.expect(file != sizes.end() && tensor.bytes <= file->second && tensor.offset <= file->second - tensor.bytes,
                 "ends behind the end of " + tensor.file);
  }
}

CpuForm cpu_form_of(const Field& form) {
  form.allow_only({"file", "inputs", "outputs"});
  return {path_of(form["file"]), tensors_of(form["inputs"]), tensors_of(form["outputs"])};
}

void read_graph(const Field& graph, Manifest& manifest) {
  graph.allow_only({"file", "inputs", "outputs", "operators", "cpu"});
  manifest.needed_files.push_back(path_of(graph["file"]));
  manifest.inputs = tensors_of(graph["inputs"]);
  manifest.outputs = tensors_of(graph["outputs"]);
  for (const Field& node : graph["operators"].elements()) {
    node.allow_only({"layer", "type", "node"});
    node["layer"].integer(0);
    node["type"].string();
    node["node"].string();
  }
  const Field cpu = graph["cpu"];
  cpu.allow_only({"weights", "exact", "fast"});
  manifest.cpu = {weights_of(cpu["weights"]), cpu_form_of(cpu["exact"]), cpu_form_of(cpu["fast"])};
  for (const CpuForm* form : {&manifest.cpu.exact, &manifest.cpu.fast}) manifest.needed_files.push_back(form->file);
}

std::map<std::string, ProfileRanges, std::less<>> profiles_of(const Field& field) {
  std::map<std::string, ProfileRanges, std::less<>> result;
  for (const auto& [profile, symbols] : field.members()) {
    ProfileRanges& ranges = result[profile];
    for (const auto& [symbol, range] : symbols.members()) {
      range.allow_only({"min", "opt", "max"});
      const int64_t min = range["min"].integer(1, INT32_MAX);
      const int64_t opt = range["opt"].integer(1, INT32_MAX);
      const int64_t max = range["max"].integer(1, INT32_MAX);
      range.expect(min <= opt && opt <= max, "min, opt and max do not ascend");
      ranges[symbol] = {min, max};
    }
  }
  return result;
}

std::vector<GpuEntry> gpus_of(const Field& field) {
  std::vector<GpuEntry> result;
  for (const Field& gpu : field.elements()) {
    gpu.allow_only({"recipe", "name", "compute_capability", "memory_bytes", "reserve_bytes", "max_context"});
    for (const char* name : {"memory_bytes", "reserve_bytes", "max_context"}) gpu[name].integer(0);
    result.push_back({gpu["recipe"].string(), gpu["name"].string(), gpu["compute_capability"].string()});
  }
  return result;
}

/// Empty for null: the bundle is for CPUs alone.
EngineEntry engine_of(const Field& engine, std::vector<std::string>& needed_files) {
  if (engine.is_null()) return {};
  engine.allow_only({"plan", "report", "log", "graph", "weights", "target", "gpus", "compute_capabilities",
                     "tensorrt_flavour", "tensorrt_version", "plugin_library_sha256", "profiles",
                     "device_memory_bytes"});
  for (const char* name : {"plan", "report", "log", "graph"}) needed_files.push_back(path_of(engine[name]));
  engine["target"].string();
  for (const auto& [part, bytes] : engine["device_memory_bytes"].members()) bytes.integer(0);
  const std::string flavour = engine["tensorrt_flavour"].string();
  engine["tensorrt_flavour"].expect(flavour == "rtx" || flavour == "tensorrt", "is neither rtx nor tensorrt");
  std::vector<std::string> capabilities;
  for (const Field& capability : engine["compute_capabilities"].elements()) capabilities.push_back(capability.string());
  engine["compute_capabilities"].expect(!capabilities.empty(), "is empty");
  return {.plan = engine["plan"].string(),
          .weights = weights_of(engine["weights"]),
          .gpus = gpus_of(engine["gpus"]),
          .compute_capabilities = std::move(capabilities),
          .tensorrt_flavour = flavour,
          .tensorrt_version = engine["tensorrt_version"].string(),
          .plugin_library_sha256 = engine["plugin_library_sha256"].sha256(),
          .profiles = profiles_of(engine["profiles"])};
}

template <class... Parts>
Error damaged(const Parts&... parts) {
  return error(ErrorCode::kBundleDamaged, parts...);
}

/// Every file is listed once, and those that other fields name are listed.
Status check_files(const Manifest& manifest) {
  std::set<std::string_view> listed;
  for (const FileEntry& entry : manifest.files) {
    if (!listed.insert(entry.path).second) return damaged("files has ", entry.path, " twice");
  }
  for (const std::string& name : manifest.needed_files) {
    if (!listed.contains(name)) return damaged("it needs ", name, ", which is not among files");
  }
  for (const auto& [name, bytes] : manifest.weight_files) {
    if (!listed.insert(name).second) return damaged("weights.files has ", name, ", which is listed before");
  }
  return success();
}

/// Of all weights together; at most what an integer holds.
int64_t stored_bytes(const Manifest& manifest) {
  int64_t total = 0;
  for (const auto& [name, bytes] : manifest.weight_files) total += std::min(bytes, INT64_MAX - total);
  return total;
}

/// A weight is made of tensors that are listed and fit its layout, and has no more rows than all weights have bytes.
Status check_weight(const WeightInput& input, const StoredTensors& tensors, int64_t most_rows) {
  for (const WeightPart& part : input.parts) {
    for (const std::string& name : part.tensors()) {
      if (tensors.contains(name)) continue;
      return damaged("weight ", input.spec.name, " needs ", name, ", which is not among weights.tensors");
    }
    if (part.rows > most_rows) {
      return damaged("weight ", input.spec.name, " has ", part.rows, " rows, more than all weights have bytes");
    }
  }
  if (!input.is_word_columns) return success();
  const auto stored = [&](const std::string& name) -> const StoredTensor& { return tensors.find(name)->second; };
  const std::string problem = word_columns_problem(input, stored);
  return problem.empty() ? success() : damaged("weight ", input.spec.name, " ", problem);
}

/// The inputs and outputs of a graph are those of a step of this model, and each fits memory. Its caches have the type
/// of its activations, or are fp32.
Status check_graph(const ModelConfig& config, std::span<const TensorSpec> inputs, std::span<const TensorSpec> outputs,
                   DType activations) {
  const auto step = StepInterface::create(config, inputs, outputs);
  if (!step) return damaged(step.error().message);
  for (const CacheSpec& cache : step->caches) {
    if (cache.past.dtype == activations || cache.past.dtype == DType::kFloat32) continue;
    return damaged("cache ", cache.past.name, " is ", name_of(cache.past.dtype));
  }
  for (const auto specs : {inputs, outputs}) {
    for (const TensorSpec& spec : specs) {
      if (bytes_of(spec.dtype, elements_of(spec.bound(kSymbols))) < 0) return damaged(spec.name, " exceeds memory");
    }
  }
  return success();
}

/// Weights have names of their own among the inputs of their graph.
Status check_weights(const std::vector<WeightInput>& weights, std::span<const TensorSpec> inputs,
                     const Manifest& manifest) {
  std::set<std::string_view> names;
  for (const TensorSpec& input : inputs) names.insert(input.name);
  const int64_t most_rows = stored_bytes(manifest);
  for (const WeightInput& weight : weights) {
    if (!names.insert(weight.spec.name).second) return damaged("two inputs have the name ", weight.spec.name);
    SALA_RETURN_IF_ERROR(check_weight(weight, manifest.tensors, most_rows));
  }
  return success();
}

/// Both profiles give each symbolic dimension of the step its range.
Status check_profiles(const Manifest& manifest) {
  for (const std::string_view name : {step_names::kPrefill, step_names::kDecode}) {
    const auto profile = manifest.engine.profiles.find(name);
    if (profile == manifest.engine.profiles.end()) return damaged("engine.profiles has no ", name);
    for (const TensorSpec& input : manifest.inputs) {
      for (const Extent& extent : input.shape) {
        const std::string& symbol = extent.symbol;
        if (symbol.empty() || symbol == step_names::kBatch || profile->second.contains(symbol)) continue;
        return damaged("engine.profiles.", name, " has no ", symbol);
      }
    }
  }
  return success();
}

/// What several fields say together.
Status check_together(const Manifest& manifest) {
  const DType activations = manifest.precision == "fp16" ? DType::kFloat16 : DType::kBFloat16;
  SALA_RETURN_IF_ERROR(check_files(manifest));
  SALA_RETURN_IF_ERROR(check_graph(manifest.config, manifest.inputs, manifest.outputs, activations));
  const CpuGraph& cpu = manifest.cpu;
  SALA_RETURN_IF_ERROR(check_graph(manifest.config, cpu.exact.inputs, cpu.exact.outputs, DType::kFloat32));
  SALA_RETURN_IF_ERROR(check_graph(manifest.config, cpu.fast.inputs, cpu.fast.outputs, activations));
  for (const CpuForm* form : {&cpu.exact, &cpu.fast}) {
    SALA_RETURN_IF_ERROR(check_weights(cpu.weights, form->inputs, manifest));
  }
  SALA_RETURN_IF_ERROR(check_weights(manifest.engine.weights, manifest.inputs, manifest));
  return manifest.has_engine() ? check_profiles(manifest) : success();
}

/// The command that builds the bundle of an older manifest again, as far as that tells what was asked for in words that
/// mean nothing to a shell.
std::string rebuild_command(const Json& content) {
  constexpr const char* kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+:,./-";
  const auto told = [&](const char* pointer, const char* otherwise) {
    const Json::json_pointer at(pointer);
    const auto text = content.contains(at) && content[at].is_string() ? content[at].get<std::string>() : "";
    return !text.empty() && text.find_first_not_of(kPlain) == std::string::npos ? text : std::string(otherwise);
  };
  const std::string source = told("/model/source", "DIR_OR_HUB_ID");
  return "sala-export build --gpu " + told("/engine/gpu", "GPU") + " --model " + source.substr(0, source.find('@')) +
         " --precision " + told("/precision", "bf16");
}

Status check_version(const Json& content, const std::string& where) {
  std::string problem;
  const int64_t version = Field(content, "", problem)["schema_version"].integer();
  if (!problem.empty()) return error(ErrorCode::kBundleDamaged, where, ": ", problem, " (build the bundle again)");
  if (version == kSchemaVersion) return success();
  const std::string advice =
      version > kSchemaVersion ? "update sala-export" : "build it again: " + rebuild_command(content);
  return error(ErrorCode::kBundleSchema, where, " has schema_version ", version, ", this release reads ",
               kSchemaVersion, ": ", advice);
}

}  // namespace

std::vector<std::string> WeightPart::tensors() const {
  std::vector<std::string> names{tensor};
  if (!factor.empty()) names.push_back(factor);
  return names;
}

std::string word_columns_problem(const WeightInput& input,
                                 const std::function<const StoredTensor&(const std::string&)>& tensor) {
  const Shape words = input.spec.bound({});
  const auto told = [](const auto& described, const Shape& shape) {
    return std::string(name_of(described.dtype)) + " " + to_string(shape);
  };
  if (input.spec.dtype != DType::kInt32 || words.size() != 2) {
    return "is " + told(input.spec, words) + ", word columns are an int32 matrix";
  }
  const int64_t row_bytes = bytes_of(DType::kInt32, words[0]);
  int64_t rows = words[1];
  for (const WeightPart& part : input.parts) {
    const StoredTensor& stored = tensor(part.tensor);
    const bool is_bytes = stored.dtype == DType::kUInt8 && stored.shape.size() == 2 && part.rows == 0;
    if (!is_bytes || stored.shape[1] != row_bytes || stored.shape[0] > rows) {
      return "has word columns of uint8 " + to_string({words[1], row_bytes}) + ", of which " + part.tensor +
             " cannot be rows: it is " + told(stored, stored.shape) + (part.rows > 0 ? ", as scales of rows" : "");
    }
    rows -= stored.shape[0];
  }
  return rows == 0
             ? ""
             : "has word columns of " + std::to_string(words[1]) + " rows, its tensors lack " + std::to_string(rows);
}

const FileEntry* Manifest::file(const std::string& path) const {
  const auto found =
      std::find_if(files.begin(), files.end(), [&](const FileEntry& entry) { return entry.path == path; });
  return found == files.end() ? nullptr : &*found;
}

Expected<Manifest> parse_manifest(std::string_view text, const std::string& where) {
  const auto document = parse_unambiguous_json(text);
  if (!document || !document->is_object()) {
    return error(ErrorCode::kBundleDamaged, where, " is not a JSON object: the bundle is damaged, build it again");
  }
  SALA_RETURN_IF_ERROR(check_version(*document, where));
  std::string problem;
  const Field root(*document, "", problem);
  root.allow_only(
      {"schema_version", "created_by", "model", "precision", "weights", "graph", "engine", "text", "files"});
  Manifest manifest;
  root["created_by"].string();
  manifest.config = config_of(root["model"]);
  manifest.config_sha256 = root["model"]["config_sha256"].sha256();
  manifest.precision = root["precision"].string();
  root["precision"].expect(std::ranges::find(kPrecisions, manifest.precision) != std::end(kPrecisions),
                           "is not a precision");
  read_weights(root["weights"], manifest);
  read_graph(root["graph"], manifest);
  manifest.engine = engine_of(root["engine"], manifest.needed_files);
  for (const Field& file : root["text"].elements()) manifest.needed_files.push_back(path_of(file));
  manifest.files = files_of(root["files"]);
  if (!problem.empty()) {
    return error(ErrorCode::kBundleDamaged, where, ": ", problem, " (build the bundle again)");
  }
  manifest.model_config = (*document)["model"]["config"];
  if (const Status checked = check_together(manifest); !checked) {
    return damaged(where, ": ", checked.error().message, " (build the bundle again)");
  }
  return manifest;
}

}  // namespace sala
