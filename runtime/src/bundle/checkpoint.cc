#include "bundle/checkpoint.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/json_fields.h"
#include "base/safetensors.h"

namespace sala {

namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kAdapterFile = "adapter_config.json";
constexpr const char* kExtension = ".safetensors";
constexpr int64_t kBiasLimitBytes = int64_t{1} << 20;
constexpr int64_t kJsonLimitBytes = int64_t{64} << 20;
constexpr SafetensorsUse kCheckpoint{ErrorCode::kWeightsUnsuitable, "download the checkpoint again",
                                     ErrorCode::kWeightsUnsuitable, "download the checkpoint again"};

template <class... Parts>
Error unsuitable(const Parts&... parts) {
  return error(ErrorCode::kWeightsUnsuitable, parts...);
}

Expected<Json> read_object(const Directory& directory, const char* name) {
  const auto file = directory.open(name);
  if (!file) return file.error();
  const auto text = read_file(*file, kJsonLimitBytes);
  if (!text) return text.error();
  auto json = parse_json(*text);
  if (!json || !json->is_object()) return unsuitable(file->path().string(), " is not a JSON object: download it again");
  return *std::move(json);
}

/// A member that is there and not null; null if there is no object.
const Json* member(const Json* object, const std::string& name) {
  if (object == nullptr || !object->is_object()) return nullptr;
  const auto found = object->find(name);
  return found == object->end() || found->is_null() ? nullptr : &*found;
}

/// Whether a bundle of the first layers of a model may have taken them from this one.
bool begins_with(const Json& mixers, const Json& first) {
  return mixers.is_array() && mixers.size() >= first.size() && std::equal(first.begin(), first.end(), mixers.begin());
}

/// What a config.json need not say (sala_export/checkpoint/config.py).
const Json& defaults() {
  static const Json kDefaults = {{"rms_norm_eps", 1e-6},
                                 {"rope_theta", 1e4},
                                 {"scale_emb", 1.0},
                                 {"scale_depth", 1.0},
                                 {"tie_word_embeddings", false},
                                 {"sparse_config",
                                  {{"kernel_size", 32},
                                   {"kernel_stride", 16},
                                   {"block_size", 64},
                                   {"topk", 64},
                                   {"window_size", 2048},
                                   {"init_blocks", 1},
                                   {"dense_len", 8192}}}};
  return kDefaults;
}

/// Compares the configuration of a bundle with that of a config.json.
Status compare_config(const Directory& directory, const Json& built_for) {
  const std::filesystem::path path = directory.path() / kConfigFile;
  const auto file = read_object(directory, kConfigFile);
  if (!file) return file.error();
  const auto compare = [&](const std::string& name, const Json* there, const Json& here) -> Status {
    if (there == nullptr) {
      return unsuitable(path.string(), ": ", name, " is missing: weights are a checkpoint's directory");
    }
    if (*there == here || (name == "mixer_types" && begins_with(*there, here))) return success();
    // Lists are long, and to write one that is nested ever so deep would overflow the stack.
    const bool is_short = there->is_primitive() && here.is_primitive();
    return unsuitable(path.string(), ": ", name, " is ", is_short ? there->dump() + "," : "not what",
                      " this bundle was built for", is_short ? " " + here.dump() : "",
                      ": give weights of the same configuration");
  };
  SALA_RETURN_IF_ERROR(compare("model_type", member(&*file, "model_type"), "minicpm_sala"));
  // Where transformers 5 writes it.
  const Json* rope_theta = member(member(&*file, "rope_parameters"), "rope_theta");
  if (rope_theta != nullptr) {
    SALA_RETURN_IF_ERROR(compare("rope_parameters.rope_theta", rope_theta, built_for["rope_theta"]));
  }
  const auto given = [&](const Json* object, const Json* otherwise, const std::string& name) {
    const Json* there = member(object, name);
    return there != nullptr ? there : member(otherwise, name);
  };
  for (const auto& [name, here] : built_for.items()) {
    // Which tokens begin and end a text is no part of what an engine computes.
    if (name.ends_with("_token_id")) continue;
    if (name == "rope_theta" && rope_theta != nullptr && member(&*file, name) == nullptr) continue;
    if (name == "sparse_config") {
      const Json* sparse = member(&*file, name);
      for (const auto& [field, value] : here.items()) {
        SALA_RETURN_IF_ERROR(compare("sparse_config." + field, given(sparse, member(&defaults(), name), field), value));
      }
    } else {
      const std::string theirs = name == "residual_depth" ? "num_hidden_layers" : name;
      SALA_RETURN_IF_ERROR(compare(theirs, given(&*file, &defaults(), theirs), here));
    }
  }
  return success();
}

/// What files hold of the tensors of a manifest.
struct Contents {
  std::map<std::string, std::pair<std::string, SafetensorsTensor>> tensors;  // by name, with the name of the file
  OpenedFiles files;
};

/// Whether a tensor is small, and all of its bytes are 0.
Expected<bool> is_zero(const File& file, const SafetensorsTensor& tensor) {
  if (tensor.bytes > kBiasLimitBytes) return false;
  std::vector<char> content(static_cast<size_t>(tensor.bytes));
  SALA_RETURN_IF_ERROR(file.read(tensor.offset, content.data(), tensor.bytes));
  return std::all_of(content.begin(), content.end(), [](char byte) { return byte == 0; });
}

/// Refuses a tensor without which the answers would be wrong, as sala_export/checkpoint/surplus.py does.
Status require_no_effect(const File& file, const SafetensorsTensor& tensor) {
  const std::string& name = tensor.name;
  if (name.find(".lora_") != std::string::npos || name.find(".base_layer.") != std::string::npos) {
    return unsuitable(file.path().string(), " holds ", name,
                      ", of an adapter that is not merged: merge it and give what that saves");
  }
  if (!name.ends_with(".bias") || !(name.starts_with("model.") || name.starts_with("lm_head."))) return success();
  const auto nothing = is_zero(file, tensor);
  if (!nothing) return nothing.error();
  if (*nothing) return success();
  return unsuitable(file.path().string(), " holds ", name,
                    ": this model has no biases, and would answer wrongly without them; give weights without biases");
}

Status add(Contents& contents, const Directory& directory, const std::string& name, const Manifest& manifest) {
  auto file = directory.open(name, kCheckpoint.if_foreign);
  if (!file) return file.error();
  const auto header = read_safetensors_header(*file, kCheckpoint);
  if (!header) return header.error();
  bool is_needed = false;
  for (const SafetensorsTensor& tensor : header->tensors) {
    if (!manifest.tensors.contains(tensor.name)) {
      SALA_RETURN_IF_ERROR(require_no_effect(*file, tensor));
      continue;
    }
    is_needed = true;
    const auto [at, is_new] = contents.tensors.try_emplace(tensor.name, name, tensor);
    if (!is_new) {
      return unsuitable(directory.path().string(), ": tensor ", tensor.name, " is in ", at->second.first, " and in ",
                        name, ": leave the one that counts");
    }
  }
  // It stays open, so that tensors are read from the file whose header this is, whatever takes its name.
  if (is_needed) contents.files[name] = std::make_shared<const File>(*std::move(file));
  return success();
}

/// The files in which an index places the tensors of a manifest.
Expected<std::set<std::string>> indexed_files(const Directory& directory, const Manifest& manifest) {
  const std::filesystem::path path = directory.path() / kIndexFile;
  const auto index = read_object(directory, kIndexFile);
  if (!index) return index.error();
  const Json* places = member(&*index, "weight_map");
  if (places == nullptr || !places->is_object()) {
    return unsuitable(path.string(), " has no weight_map object: download it again");
  }
  std::set<std::string> files;
  for (const auto& [name, tensor] : manifest.tensors) {
    const Json* place = member(places, name);
    if (place == nullptr) continue;
    const std::string file = place->is_string() ? place->get<std::string>() : "";
    if (!file.ends_with(kExtension) || std::filesystem::path(file).filename() != file) {
      return unsuitable(path.string(), " places ", name, " in '", file, "', expected a ", kExtension,
                        " file beside it");
    }
    files.insert(file);
  }
  return files;
}

/// model.safetensors, else what the index names, else every safetensors file.
Expected<std::set<std::string>> weight_files(const Directory& directory, const Manifest& manifest) {
  if (directory.has(kWeightsFile)) return std::set<std::string>{kWeightsFile};
  if (directory.has(kIndexFile)) return indexed_files(directory, manifest);
  const auto names = directory.names();
  if (!names) return names.error();
  std::set<std::string> files;
  for (const std::string& name : *names) {
    if (std::filesystem::path(name).extension() == kExtension) files.insert(name);
  }
  if (files.empty()) {
    return error(ErrorCode::kWeightsMissing, directory.path().string(), " has no ", kExtension,
                 " file: weights are a checkpoint's directory in Hugging Face layout");
  }
  return files;
}

/// Tensors of scales that may be one number or one for each row, and of how many rows.
std::map<std::string, std::set<int64_t>> rows_of_scales(const Manifest& manifest) {
  std::map<std::string, std::set<int64_t>> rows;
  for (const auto* inputs : {&manifest.cpu.weights, &manifest.engine.weights}) {
    for (const WeightInput& input : *inputs) {
      for (const WeightPart& part : input.parts) {
        if (part.rows > 0) rows[part.tensor].insert(part.rows);
      }
    }
  }
  return rows;
}

bool is_column(const Shape& shape, int64_t rows) { return shape == Shape{rows} || shape == Shape{rows, 1}; }

/// Whether scales of `shape` serve weights of so many rows.
bool serves(const Shape& shape, const std::set<int64_t>& rows) {
  if (shape.empty() || shape == Shape{1}) return true;
  return std::all_of(rows.begin(), rows.end(), [&](int64_t count) { return is_column(shape, count); });
}

std::string describe(std::string_view type, const Shape& shape) { return std::string(type) + " " + to_string(shape); }

}  // namespace

Expected<CheckpointContents> open_checkpoint(const std::filesystem::path& path, const Manifest& manifest) {
  const auto directory = Directory::open(path, ErrorCode::kWeightsUnsuitable);
  if (!directory || !directory->has(kConfigFile)) {
    const std::string problem = directory ? path.string() + " has no " + kConfigFile : directory.error().message;
    return error(ErrorCode::kWeightsMissing, problem, ": weights are a checkpoint's directory in Hugging Face layout");
  }
  if (directory->has(kAdapterFile)) {
    return unsuitable(path.string(), " holds a PEFT adapter (", kAdapterFile,
                      "): merge it into its model and give what that saves");
  }
  SALA_RETURN_IF_ERROR(compare_config(*directory, manifest.model_config));
  const auto files = weight_files(*directory, manifest);
  if (!files) return files.error();
  Contents contents;
  for (const std::string& file : *files) SALA_RETURN_IF_ERROR(add(contents, *directory, file, manifest));
  const auto scales = rows_of_scales(manifest);
  CheckpointContents result;
  for (const auto& [name, wanted] : manifest.tensors) {
    const auto found = contents.tensors.find(name);
    const std::string needed = describe(name_of(wanted.dtype), wanted.shape);
    if (found == contents.tensors.end()) {
      return unsuitable(path.string(), " has no tensor ", name, " (", needed, "), which this bundle of precision ",
                        manifest.precision, " needs: give weights of the same form");
    }
    const auto& [file, tensor] = found->second;
    const auto rows = scales.find(name);
    const bool fits = tensor.shape == wanted.shape || (rows != scales.end() && serves(tensor.shape, rows->second));
    if (tensor.dtype != wanted.dtype || !fits) {
      return unsuitable((path / file).string(), ": tensor ", name, " is ",
                        describe(tensor.dtype ? name_of(*tensor.dtype) : tensor.type, tensor.shape),
                        ", this bundle of precision ", manifest.precision, " was built for ", needed,
                        ": give weights of the same form");
    }
    result.tensors[name] = {file, tensor.offset, tensor.bytes, wanted.dtype, tensor.shape, wanted.sha256, wanted.fixed};
  }
  result.files = std::move(contents.files);
  return result;
}

}  // namespace sala
