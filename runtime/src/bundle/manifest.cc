#include "bundle/manifest.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "base/json_fields.h"
#include "bundle/model_config.h"

namespace sala {

namespace {

constexpr int64_t kSchemaVersion = 4;

DType dtype_of(const Field& field) {
  const std::string name = field.string();
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt32, DType::kInt64,
                            DType::kFloat8E4M3FN, DType::kFloat4E2M1FN, DType::kInt8, DType::kUInt8}) {
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

/// The format of a quantised precision, or the end of the table.
auto find_codes(std::string_view precision) {
  return std::find_if(kCodeFormats.begin(), kCodeFormats.end(),
                      [&](const CodeFormat& format) { return format.precision == precision; });
}

Dequantization dequantization_of(const Field& field) {
  field.allow_only({"precision", "columns", "scale", "global_scale"});
  Dequantization result;
  const std::string precision = field["precision"].string();
  const auto* found = find_codes(precision);
  field["precision"].expect(found != kCodeFormats.end(), "is not a quantised precision");
  if (found != kCodeFormats.end()) result.codes = static_cast<Codes>(found - kCodeFormats.begin());
  result.columns = field["columns"].integer(1);
  result.scale = field["scale"].string();
  result.global_scale = static_cast<float>(field["global_scale"].number());
  field["global_scale"].expect(std::isfinite(result.global_scale) && result.global_scale > 0.0f, "is no scale");
  return result;
}

/// Whether an optional member has a value.
bool given(const Field& field, const char* name) { return field.has(name) && !field[name].is_null(); }

WeightPart part_of(const Field& part) {
  part.allow_only({"tensor", "rows", "factor", "dequantization"});
  WeightPart result{.tensor = part["tensor"].string(), .rows = 0, .factor = {}, .dequantization = {}};
  if (given(part, "rows")) result.rows = part["rows"].integer(1);
  if (given(part, "factor")) result.factor = part["factor"].string();
  if (given(part, "dequantization")) result.dequantization = dequantization_of(part["dequantization"]);
  part.expect(result.rows == 0 || !result.dequantization, "is dequantised and has rows of scales");
  part.expect(result.factor.empty() || result.rows != 0, "has a factor without rows of scales");
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

StoredTensor stored_tensor_of(const Field& field) {
  field.allow_only({"file", "offset", "bytes", "dtype", "shape", "sha256", "fixed"});
  StoredTensor tensor;
  tensor.file = field["file"].string();
  tensor.offset = field["offset"].integer(0);
  tensor.bytes = field["bytes"].integer(0);
  tensor.dtype = dtype_of(field["dtype"]);
  field["dtype"].expect(tensor.dtype != DType::kFloat4E2M1FN, "is not a type of stored tensors");
  for (const Field& extent : field["shape"].elements()) tensor.shape.push_back(extent.integer(0));
  tensor.sha256 = field["sha256"].string();
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
  cpu.allow_only({"file", "inputs", "outputs", "weights"});
  manifest.cpu = {path_of(cpu["file"]), tensors_of(cpu["inputs"]), tensors_of(cpu["outputs"]),
                  weights_of(cpu["weights"])};
  manifest.needed_files.push_back(manifest.cpu.file);
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

std::vector<GpuEntry> gpus_of(const Field& field) {
  std::vector<GpuEntry> result;
  for (const Field& gpu : field.elements()) {
    gpu.allow_only({"recipe", "name", "compute_capability", "memory_bytes", "reserve_bytes", "max_context"});
    for (const char* name : {"memory_bytes", "reserve_bytes", "max_context"}) gpu[name].integer(0);
    result.push_back({gpu["recipe"].string(), gpu["name"].string(), gpu["compute_capability"].string()});
  }
  return result;
}

EngineEntry engine_of(const Field& engine, std::vector<std::string>& needed_files) {
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
          .plugin_library_sha256 = engine["plugin_library_sha256"].string(),
          .profiles = profiles_of(engine["profiles"])};
}

/// Files that other fields name must be listed, and so must the tensors that weights are made of.
Status check_references(const Manifest& manifest, const std::string& where) {
  const auto damaged = [&](const auto&... parts) {
    return error(ErrorCode::kBundleDamaged, where, ": ", parts..., " (build the bundle again)");
  };
  for (const std::string& name : manifest.needed_files) {
    if (manifest.file(name) == nullptr) return damaged("it needs ", name, ", which is not among files");
  }
  for (const auto* inputs : {&manifest.cpu.weights, &manifest.engine.weights}) {
    for (const WeightInput& input : *inputs) {
      for (const WeightPart& part : input.parts) {
        for (const std::string& name : part.tensors()) {
          if (manifest.tensors.contains(name)) continue;
          return damaged("weight ", input.spec.name, " needs ", name, ", which is not among weights.tensors");
        }
      }
    }
  }
  return success();
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
  if (dequantization) names.push_back(dequantization->scale);
  return names;
}

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
  SALA_RETURN_IF_ERROR(check_version(*document, where));
  std::string problem;
  const Field root(*document, "", problem);
  root.allow_only(
      {"schema_version", "created_by", "model", "precision", "weights", "graph", "engine", "text", "files"});
  Manifest manifest;
  root["created_by"].string();
  manifest.config = config_of(root["model"]);
  manifest.config_sha256 = root["model"]["config_sha256"].string();
  manifest.precision = root["precision"].string();
  const std::string& precision = manifest.precision;
  const bool is_known = precision == "bf16" || precision == "fp16" || find_codes(precision) != kCodeFormats.end();
  root["precision"].expect(is_known, "is not a precision");
  read_weights(root["weights"], manifest);
  read_graph(root["graph"], manifest);
  manifest.engine = engine_of(root["engine"], manifest.needed_files);
  for (const Field& file : root["text"].elements()) manifest.needed_files.push_back(path_of(file));
  manifest.files = files_of(root["files"]);
  if (!problem.empty()) {
    return error(ErrorCode::kBundleDamaged, where, ": ", problem, " (build the bundle again)");
  }
  manifest.model_config = (*document)["model"]["config"];
  SALA_RETURN_IF_ERROR(check_references(manifest, where));
  return manifest;
}

}  // namespace sala
