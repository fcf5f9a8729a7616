// `bundle.json`, schema 3. The format is described beside its writer, sala_export/bundle/manifest.py.

#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "sala/model.h"
#include "sala/status.h"
#include "sala/tensor.h"

namespace sala {

constexpr const char* kManifestFile = "bundle.json";

struct FileEntry {
  std::string path;  // relative to the bundle, never out of it
  int64_t bytes = 0;
  std::string sha256;
};

/// What the codes of a quantised weight are, by its precision: e4m3, signed bytes, nibbles that hold the code plus 8,
/// nibbles of e2m1; the first of two nibbles is the low one. Scales are fp32, fp32, bf16 and e4m3.
enum class Codes { kFp8, kInt8, kInt4, kNvfp4 };

/// How they become numbers: `code * scale * global_scale`, each block of the weight with its own scale.
struct Dequantization {
  Codes codes = Codes::kFp8;
  int64_t columns = 1;  // elements of a row
  std::string scale_file;
  int64_t scale_offset = 0;
  int64_t scale_bytes = 0;
  int64_t block_rows = 1;  // blocks along the rows, and along the columns
  int64_t block_columns = 1;
  float global_scale = 1.0f;
};

/// Consecutive elements of a weight in a file, little endian, row major.
struct WeightPart {
  std::string file;
  int64_t offset = 0;  // bytes, not always a multiple of the element size
  int64_t bytes = 0;
  DType dtype = DType::kFloat32;  // of plain numbers
  std::optional<Dequantization> dequantization{};
};

/// A weight that the CPU graph takes as an input: its parts, converted to the input's type, one after the other.
struct WeightInput {
  TensorSpec spec;
  std::vector<WeightPart> parts;
};

struct CpuGraph {
  std::string file;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  std::vector<WeightInput> weights;
};

/// One plan: consecutive layers. `hidden_states.{layer}` leaves it for the shard that begins with that layer.
struct ShardEntry {
  std::string plan;
  int64_t first_layer = 0;
  int64_t num_layers = 0;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
  bool plugin_library_serialized = false;
};

/// What an optimisation profile allows a symbolic dimension.
struct Range {
  int64_t min = 0;
  int64_t max = 0;
};

using ProfileRanges = std::map<std::string, Range, std::less<>>;  // by symbol

struct EngineEntry {
  std::vector<ShardEntry> shards;  // in order of layers, at least one
  std::string gpu_name;
  std::string compute_capability;
  std::string tensorrt_flavour;
  std::string tensorrt_version;
  std::string plugin_library_sha256;
  std::map<std::string, ProfileRanges, std::less<>> profiles;  // by name
};

struct Manifest {
  ModelConfig config;
  std::string precision;
  bool weights_included = false;
  std::vector<TensorSpec> inputs;  // of the whole step, which the engine's shards have together
  std::vector<TensorSpec> outputs;
  CpuGraph cpu;
  EngineEntry engine;
  std::vector<FileEntry> files;
  std::vector<std::string> needed_files;  // that other fields name, each among `files`

  /// The entry of a file; null if the bundle has no such file.
  const FileEntry* file(const std::string& path) const;
};

/// Reads and checks bundle.json and compares the sizes of all files.
Expected<Manifest> read_manifest(const std::filesystem::path& bundle);

/// Parses the text of a bundle.json; `where` names it in messages.
Expected<Manifest> parse_manifest(std::string_view text, const std::string& where);

/// Hashes every file.
Status verify_hashes(const std::filesystem::path& bundle, const Manifest& manifest);

}  // namespace sala
