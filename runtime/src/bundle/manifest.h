// `bundle.json`, schema 6. The format is described in sala_export/bundle/FORMAT.md.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json_fields.h"
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

/// A tensor of the checkpoint: little endian, row major, without gaps.
struct StoredTensor {
  std::string file;    // relative to the folder that it lies in
  int64_t offset = 0;  // bytes, not always a multiple of the element size
  int64_t bytes = 0;
  DType dtype = DType::kFloat32;  // as it is stored: several codes of a four-bit weight share one number
  Shape shape;
  std::string sha256;
  bool fixed = false;  // its bytes are constants of the engine too: what takes its place must have the same hash
};

using StoredTensors = std::map<std::string, StoredTensor, std::less<>>;  // by name

/// Consecutive elements of a weight input, from one tensor: plain or scales (FORMAT.md).
struct WeightPart {
  std::string tensor;
  int64_t rows = 0;      // of scales; 0: these are none
  std::string factor{};  // tensor of one number that multiplies scales; empty: none

  /// The names of all tensors that it is made from.
  std::vector<std::string> tensors() const;
};

/// A weight that a graph takes as an input: its parts, one after the other, or interleaved as words. Parts of an input
/// of shape [1] each tell its one number, and must agree.
struct WeightInput {
  TensorSpec spec;
  std::vector<WeightPart> parts;
  bool is_word_columns = false;  // the form of that name (FORMAT.md)

  /// Of the whole input; -1 if its shape is symbolic or takes more than int64.
  int64_t bytes() const { return bytes_of(spec.dtype, elements_of(spec.bound({}))); }
};

/// What keeps the tensors of its parts from being an input of word columns, in words that stand behind its name; empty
/// if nothing does. Its size fits int64, and `tensor` has each of its tensors.
std::string word_columns_problem(const WeightInput& input,
                                 const std::function<const StoredTensor&(const std::string&)>& tensor);

/// A step on the CPU in one arithmetic.
struct CpuForm {
  std::string file;
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

struct CpuGraph {
  std::vector<WeightInput> weights;  // of both forms
  CpuForm exact;
  CpuForm fast;

  const CpuForm& form(CpuMath math) const { return math == CpuMath::kFast ? fast : exact; }
};

/// What an optimisation profile allows a symbolic dimension.
struct Range {
  int64_t min = 0;
  int64_t max = 0;
};

using ProfileRanges = std::map<std::string, Range, std::less<>>;  // by symbol

/// A GPU that the engine was built for.
struct GpuEntry {
  std::string recipe;
  std::string name;
  std::string compute_capability;
};

struct EngineEntry {
  std::string plan;
  std::vector<WeightInput> weights;  // inputs besides those of the step
  std::vector<GpuEntry> gpus;
  std::vector<std::string> compute_capabilities;  // of every GPU that it runs on, at least one
  std::string tensorrt_flavour;
  std::string tensorrt_version;
  std::string plugin_library_sha256;
  std::map<std::string, ProfileRanges, std::less<>> profiles;  // by name
};

struct Manifest {
  ModelConfig config;
  std::string config_sha256;
  Json model_config;  // `model.config`, to compare other weights with
  std::string precision;
  bool weights_included = false;
  std::vector<std::pair<std::string, int64_t>> weight_files;  // path and bytes, also of those that were left out
  StoredTensors tensors;
  std::vector<TensorSpec> inputs;  // of the step
  std::vector<TensorSpec> outputs;
  CpuGraph cpu;
  EngineEntry engine;  // empty in a bundle for CPUs alone
  std::vector<FileEntry> files;
  std::vector<std::string> needed_files;  // that other fields name, each among `files`

  bool has_engine() const { return !engine.plan.empty(); }
  /// The entry of a file; null if the bundle has no such file.
  const FileEntry* file(const std::string& path) const;
};

/// Parses the text of a bundle.json; `where` names it in messages.
Expected<Manifest> parse_manifest(std::string_view text, const std::string& where);

}  // namespace sala
