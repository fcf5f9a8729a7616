#include "checkpoint.h"

#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "file.h"
#include "json_fields.h"
#include "safetensors.h"

namespace sala {

namespace {

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kExtension = ".safetensors";
constexpr int64_t kJsonLimitBytes = int64_t{64} << 20;
constexpr SafetensorsUse kCheckpoint{ErrorCode::kWeightsUnsuitable, "download the checkpoint again",
                                     ErrorCode::kWeightsUnsuitable, "download the checkpoint again"};

template <class... Parts>
Error unsuitable(const Parts&... parts) {
  return error(ErrorCode::kWeightsUnsuitable, parts...);
}

bool is_there(const std::filesystem::path& path) {
  std::error_code ignored;  // what cannot be examined cannot be read either
  return std::filesystem::exists(path, ignored);
}

Expected<Json> read_object(const std::filesystem::path& path) {
  const auto text = read_file(path, kJsonLimitBytes, ErrorCode::kWeightsUnsuitable);
  if (!text) return text.error();
  auto json = parse_json(*text);
  if (!json || !json->is_object()) return unsuitable(path.string(), " is not a JSON object: download it again");
  return *std::move(json);
}

/// A member that is there and not null.
const Json* member(const Json& object, const std::string& name) {
  const auto found = object.is_object() ? object.find(name) : object.end();
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

/// Whether a bundle of the first layers of a model may have taken them from this one.
bool begins_with(const Json& mixers, const Json& first) {
  return mixers.is_array() && mixers.size() >= first.size() && std::equal(first.begin(), first.end(), mixers.begin());
}

/// Compares the configuration of a bundle with the fields that a config.json has of it.
Status compare_config(const std::filesystem::path& path, const Json& built_for) {
  const auto file = read_object(path);
  if (!file) return file.error();
  const auto differs = [&](const std::string& name, const Json& there, const Json& here) {
    return unsuitable(path.string(), ": ", name, " is ", there.dump(-1, ' ', true, Json::error_handler_t::replace),
                      ", this bundle was built for ", here.dump(), ": give weights of the same configuration");
  };
  const auto compare = [&](const std::string& prefix, const Json& there, const std::string& name,
                           const Json& here) -> Status {
    const Json* value = member(there, name);
    if (value == nullptr || *value == here || (name == "mixer_types" && begins_with(*value, here))) return success();
    return differs(prefix + name, *value, here);
  };
  static const Json kNone = Json::object();
  const auto nested = [&](const char* name) { return member(*file, name) != nullptr ? *member(*file, name) : kNone; };
  for (const auto& [name, here] : built_for.items()) {
    // Which tokens begin and end a text is no part of what an engine computes.
    if (name.ends_with("_token_id")) continue;
    if (name == "sparse_config") {
      for (const auto& [field, value] : here.items()) {
        SALA_RETURN_IF_ERROR(compare("sparse_config.", nested("sparse_config"), field, value));
      }
    } else if (name == "residual_depth") {
      SALA_RETURN_IF_ERROR(compare("", *file, "num_hidden_layers", here));
    } else {
      SALA_RETURN_IF_ERROR(compare("", *file, name, here));
    }
  }
  // Where transformers 5 writes it.
  return compare("rope_parameters.", nested("rope_parameters"), "rope_theta", built_for["rope_theta"]);
}

/// Tensors of several files, by name.
class Contents {
 public:
  Status add(const std::filesystem::path& directory, const std::string& file) {
    const auto opened = File::open(directory / file, ErrorCode::kWeightsUnsuitable);
    if (!opened) return opened.error();
    auto header = read_safetensors_header(*opened, kCheckpoint);
    if (!header) return header.error();
    for (SafetensorsTensor& tensor : header->tensors) {
      const std::string name = tensor.name;
      const auto [at, is_new] = tensors_.try_emplace(name, file, std::move(tensor));
      if (!is_new) {
        return unsuitable(directory.string(), ": tensor ", name, " is in ", at->second.first, " and in ", file,
                          ": leave the one that counts");
      }
    }
    return success();
  }

  /// File and tensor; null if no file has it.
  const std::pair<std::string, SafetensorsTensor>* find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
  }

 private:
  std::map<std::string, std::pair<std::string, SafetensorsTensor>> tensors_;
};

/// The files in which an index places the tensors of a manifest.
Expected<std::set<std::string>> indexed_files(const std::filesystem::path& path, const Manifest& manifest) {
  const auto index = read_object(path);
  if (!index) return index.error();
  const Json* places = member(*index, "weight_map");
  if (places == nullptr || !places->is_object()) {
    return unsuitable(path.string(), " has no weight_map object: download it again");
  }
  std::set<std::string> files;
  for (const auto& [name, tensor] : manifest.tensors) {
    const Json* place = member(*places, name);
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
Expected<std::set<std::string>> weight_files(const std::filesystem::path& directory, const Manifest& manifest) {
  if (is_there(directory / kWeightsFile)) return std::set<std::string>{kWeightsFile};
  if (is_there(directory / kIndexFile)) return indexed_files(directory / kIndexFile, manifest);
  std::set<std::string> files;
  std::error_code failure;
  for (std::filesystem::directory_iterator entry(directory, failure), end; !failure && entry != end;
       entry.increment(failure)) {
    if (entry->path().extension() == kExtension) files.insert(entry->path().filename().string());
  }
  if (failure) return unsuitable(directory.string(), " cannot be read: ", failure.message());
  if (files.empty()) {
    return error(ErrorCode::kWeightsMissing, directory.string(), " has no ", kExtension,
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
        if (!part.dequantization) continue;
        const Dequantization& how = *part.dequantization;
        if (how.codes != Codes::kFp8 && how.codes != Codes::kInt8) continue;
        rows[how.scale].insert(manifest.tensors.at(part.tensor).bytes / how.columns);
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

Expected<std::map<std::string, StoredTensor, std::less<>>> find_tensors(const std::filesystem::path& directory,
                                                                        const Manifest& manifest) {
  if (!is_there(directory / kConfigFile)) {
    return error(ErrorCode::kWeightsMissing, directory.string(), " has no ", kConfigFile,
                 ": weights are a checkpoint's directory in Hugging Face layout");
  }
  SALA_RETURN_IF_ERROR(compare_config(directory / kConfigFile, manifest.model_config));
  const auto files = weight_files(directory, manifest);
  if (!files) return files.error();
  Contents contents;
  for (const std::string& file : *files) SALA_RETURN_IF_ERROR(contents.add(directory, file));
  const auto scales = rows_of_scales(manifest);
  std::map<std::string, StoredTensor, std::less<>> result;
  for (const auto& [name, wanted] : manifest.tensors) {
    const auto* found = contents.find(name);
    const std::string needed = describe(name_of(wanted.dtype), wanted.shape);
    if (found == nullptr) {
      return unsuitable(directory.string(), " has no tensor ", name, " (", needed, "), which this bundle of precision ",
                        manifest.precision, " needs: give weights of the same form");
    }
    const auto& [file, tensor] = *found;
    const auto rows = scales.find(name);
    const bool fits = tensor.shape == wanted.shape || (rows != scales.end() && serves(tensor.shape, rows->second));
    if (tensor.dtype != wanted.dtype || !fits) {
      return unsuitable((directory / file).string(), ": tensor ", name, " is ",
                        describe(tensor.dtype ? name_of(*tensor.dtype) : tensor.type, tensor.shape),
                        ", this bundle of precision ", manifest.precision, " was built for ", needed,
                        ": give weights of the same form");
    }
    result[name] = {file,         tensor.offset, tensor.bytes, wanted.dtype,
                    tensor.shape, wanted.fixed ? wanted.sha256 : "", wanted.fixed};
  }
  return result;
}

}  // namespace sala
