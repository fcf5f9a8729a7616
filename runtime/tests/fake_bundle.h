// A bundle of the mock model for the fake TensorRT, with weights in safetensors files.

#pragma once

#include <elf.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/sha256.h"
#include "fake_weights.h"
#include "mock_engine.h"
#include "sala/model.h"

namespace sala::test {

constexpr int64_t kChunk = 16;
constexpr int64_t kCapacity = 4096;
constexpr int64_t kLeastCapacity = 8;
constexpr int64_t kActivationBytes[2] = {8192, 512};  // by profile
constexpr const char* kConfigHash = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";
constexpr const char* kPlan = "engine/engine.plan";

/// A host library as a plan holds it: an ELF header that says so, and section headers at the end.
inline std::string host_library(char filling = 'p') {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_type = ET_DYN;
  header.e_machine = EM_X86_64;
  header.e_shoff = sizeof header + 100;
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shnum = 1;
  return std::string(reinterpret_cast<const char*>(&header), sizeof header) + std::string(100, filling) +
         std::string(sizeof(Elf64_Shdr), 's');
}

/// Largest sizes of both profiles. Where the engine runs batches, caches fill pages of 2 MiB, as a build has it: 262144
/// rows of 24 bytes fill three.
struct FakeSizes {
  int64_t max_batch = 1;
  int64_t capacity = max_batch == 1 ? kCapacity : 262144;
  int64_t k1 = max_batch == 1 ? 2047 : capacity;
  int64_t k2 = max_batch == 1 ? 511 : capacity;
  int64_t prefill_batch = 1;
  int64_t chunk = kChunk;

  SymbolSizes prefill() const { return of(prefill_batch, chunk, kMaxLogitRows); }
  SymbolSizes decode() const { return of(max_batch, 1, max_batch); }

 private:
  SymbolSizes of(int64_t batch, int64_t tokens, int64_t rows) const {
    return {{"batch", batch},       {"tokens", tokens},  {"rows", rows},
            {"capacity", capacity}, {"capacity_k1", k1}, {"capacity_k2", k2}};
  }
};

/// TensorRT's DataType.
inline int32_t trt_type(DType dtype) {
  static const std::map<DType, int32_t> kTypes = {
      {DType::kFloat32, 0},  {DType::kFloat16, 1}, {DType::kInt8, 2},
      {DType::kInt32, 3},    {DType::kUInt8, 5},   {DType::kFloat8E4M3FN, 6},
      {DType::kBFloat16, 7}, {DType::kInt64, 8},   {DType::kFloat4E2M1FN, 10}};
  return kTypes.at(dtype);
}

/// One tensor in the words of a fake plan; `mode` is 1 for an input, 2 for an output.
inline std::string plan_line(const TensorSpec& spec, int mode, const FakeSizes& sizes) {
  std::ostringstream text;
  text << "tensor " << mode << " " << spec.name << " " << trt_type(spec.dtype) << " " << spec.shape.size();
  bool is_dynamic = false;
  for (const int64_t extent : spec.bound({})) {
    text << " " << extent;
    is_dynamic = is_dynamic || extent < 0;
  }
  for (const SymbolSizes& largest : {sizes.prefill(), sizes.decode()}) {
    for (const int64_t extent : spec.bound(largest)) {
      if (mode == 1 && is_dynamic) text << " " << extent;
    }
  }
  return text.str() + "\n";
}

/// What a real plan would say of itself, and its library.
inline std::string plan_text(const std::vector<TestWeight>& weights, const FakeSizes& sizes) {
  const MockEngine step;
  std::ostringstream text;
  text << "fake-plan activation " << kActivationBytes[0] << " " << kActivationBytes[1] << "\n";
  for (const TensorSpec& spec : step.inputs_) text << plan_line(spec, 1, sizes);
  for (const TestWeight& weight : weights) text << plan_line(weight.spec, 1, sizes);
  for (const TensorSpec& spec : step.outputs_) text << plan_line(spec, 2, sizes);
  return text.str() + "end\n" + host_library();
}

inline Json json_of(const TensorSpec& spec) {
  Json shape = Json::array();
  for (const Extent& extent : spec.shape) {
    shape.push_back(extent.symbol.empty() ? Json(extent.value) : Json(extent.symbol));
  }
  return {{"name", spec.name}, {"dtype", name_of(spec.dtype)}, {"shape", shape}};
}

inline Json json_of(const std::vector<TensorSpec>& specs) {
  Json result = Json::array();
  for (const TensorSpec& spec : specs) result.push_back(json_of(spec));
  return result;
}

inline Json json_of(const std::vector<TestWeight>& weights) {
  Json result = Json::array();
  for (const TestWeight& weight : weights) {
    result.push_back({{"spec", json_of(weight.spec)}, {"parts", weight.parts}, {"layout", weight.layout}});
  }
  return result;
}

inline Json cpu_form(const char* file, const MockEngine& step) {
  return {{"file", file}, {"inputs", json_of(step.inputs_)}, {"outputs", json_of(step.outputs_)}};
}

inline Json config_json() {
  const ModelConfig config = mock_config();
  return {{"vocab_size", kVocabSize},
          {"hidden_size", 4},
          {"intermediate_size", 4},
          {"num_attention_heads", kHeads},
          {"num_key_value_heads", kHeads},
          {"head_dim", 2},
          {"mixer_types", {"lightning-attn", "minicpm4"}},
          {"max_position_embeddings", config.max_position_embeddings},
          {"eos_token_id", config.eos_token_ids},
          {"sparse_config",
           {{"kernel_size", kKernelSize},
            {"kernel_stride", kKernelStride},
            {"block_size", 2 * kKernelStride},
            {"topk", 2},
            {"window_size", 0},
            {"init_blocks", 1},
            {"dense_len", kDenseLength}}},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 1e4},
          {"scale_emb", 1},
          {"scale_depth", 1},
          {"dim_model_base", 4},
          {"tie_word_embeddings", false},
          {"bos_token_id", 1},
          {"pad_token_id", nullptr},
          {"residual_depth", 2}};
}

inline Json profile_json(const SymbolSizes& largest) {
  Json result;
  for (const auto& [symbol, most] : largest) {
    const int64_t least = symbol == "capacity" ? kLeastCapacity : 1;
    result[symbol] = {{"min", least}, {"opt", most}, {"max", most}};
  }
  return result;
}

inline Json engine_json(const std::vector<TestWeight>& weights, const FakeSizes& sizes) {
  return {{"plan", kPlan},
          {"report", "engine/report.json"},
          {"log", "engine/build.log"},
          {"graph", "engine/engine.onnx"},
          {"weights", json_of(weights)},
          {"target", "fakes"},
          {"gpus",
           {{{"recipe", "fake"},
             {"name", "Fake GPU"},
             {"compute_capability", "12.0"},
             {"memory_bytes", 1 << 28},
             {"reserve_bytes", 0},
             {"max_context", kCapacity}}}},
          {"compute_capabilities", {"8.9", "12.0"}},
          {"tensorrt_flavour", "rtx"},
          {"tensorrt_version", "1.7.1.116"},
          {"plugin_library_sha256", sha256(host_library())},
          {"profiles", {{"prefill", profile_json(sizes.prefill())}, {"decode", profile_json(sizes.decode())}}},
          {"device_memory_bytes", Json::object()}};
}

inline void write_file(const std::filesystem::path& path, const std::string& content) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << content;
}

/// A bundle on disk whose manifest, files and weights may be changed before it is written.
class FakeBundle {
 public:
  explicit FakeBundle(TestTensors given = test_tensors(), FakeSizes largest = {})
      : tensors(std::move(given)), sizes(largest) {
    directory_ = std::filesystem::path(testing::TempDir()) / ("bundle-" + std::to_string(count_++)) / "mock.sala";
    std::filesystem::remove_all(directory_.parent_path());  // of an earlier run
    for (const char* name : {"engine/report.json", "engine/build.log", "engine/engine.onnx", "graph/model.onnx",
                             "graph/cpu.onnx", "graph/cpu_fast.onnx"}) {
      files[name] = "not used";
    }
    const MockEngine step;
    const ModelConfig config = mock_config();
    const Json none = Json::array();
    manifest = {{"schema_version", 6},
                {"created_by", "tests"},
                {"model",
                 {{"source", config.source},
                  {"config", config_json()},
                  {"config_sha256", kConfigHash},
                  {"inv_freq", config.inv_freq}}},
                {"precision", "bf16"},
                {"graph",
                 {{"file", "graph/model.onnx"},
                  {"inputs", json_of(step.inputs_)},
                  {"outputs", json_of(step.outputs_)},
                  {"operators", none},
                  {"cpu",
                   {{"weights", none},
                    {"exact", cpu_form("graph/cpu.onnx", step)},
                    {"fast", cpu_form("graph/cpu_fast.onnx", step)}}}}},
                {"text", none}};
    take_weights();
  }

  FakeBundle(const FakeBundle&) = delete;
  FakeBundle& operator=(const FakeBundle&) = delete;
  ~FakeBundle() { std::filesystem::remove_all(directory_.parent_path()); }

  /// Plan and manifest follow `tensors`, `weights` and `sizes`, after these have changed.
  void take_weights() {
    files[kPlan] = plan_text(weights, sizes);
    manifest["engine"] = engine_json(weights, sizes);
    manifest["model"]["fingerprint"] = fingerprint(tensors);
  }

  /// Writes what was not written yet; hashes of files and tensors are theirs at the first writing.
  const std::filesystem::path& write() {
    if (!manifest.contains("files")) {
      manifest["files"] = Json::array();
      for (const auto& [name, content] : files) {
        manifest["files"].push_back({{"path", name}, {"bytes", content.size()}, {"sha256", sha256(content)}});
      }
      list_weights();
    }
    for (const auto& [name, content] : files) write_file(directory_ / name, content);
    for (const auto& [name, content] : weight_files) write_file(directory_ / name, content);
    write_file(directory_ / "bundle.json", manifest.dump());
    return directory_;
  }

  /// A byte of a tensor in its file, after `write`.
  char& byte(const std::string& tensor, size_t index) {
    const Json& stored = manifest["weights"]["tensors"][tensor];
    return weight_files.at(stored["file"]).at(stored["offset"].get<size_t>() + index);
  }

  /// A checkpoint of the bundle's configuration beside it.
  std::filesystem::path write_checkpoint(const TestTensors& other) const {
    const auto directory = directory_.parent_path() / "checkpoint";
    std::map<std::string, int64_t> offsets;
    Json config = config_json();
    config["model_type"] = "minicpm_sala";
    config["num_hidden_layers"] = config["residual_depth"];
    write_file(directory / "config.json", config.dump());
    write_file(directory / "model.safetensors", safetensors_file(other, offsets));
    return directory;
  }

  /// The mock engine with the weights that the engine makes of `given`.
  Mock mock_of(const TestTensors& given, const std::string& precision = "fp32") const {
    ModelConfig config = mock_config();
    config.fingerprint = fingerprint(given);
    Mock mock(std::move(config), precision);
    mock.engine->log_->weights = mock_weights(weights, given);
    return mock;
  }
  Mock mock(const std::string& precision = "fp32") const { return mock_of(tensors, precision); }

  std::filesystem::path runtime_cache() const { return directory_.string() + ".runtime-cache"; }

  static std::string fingerprint(const TestTensors& tensors) {
    std::string lines = "config " + std::string(kConfigHash) + "\n";
    for (const auto& [name, tensor] : tensors) lines += name + " " + sha256(tensor.bytes) + "\n";
    return sha256(lines);
  }

  TestTensors tensors;
  FakeSizes sizes;
  std::vector<TestWeight> weights = test_weights();
  Json manifest;
  std::map<std::string, std::string> files;
  std::map<std::string, std::string> weight_files;  // filled by `write`

 private:
  /// Places the tensors in two files by turns.
  void list_weights() {
    TestTensors halves[2];
    for (const auto& [name, tensor] : tensors) {
      TestTensors& half = halves[halves[0].size() > halves[1].size() ? 1 : 0];
      half[name] = tensor;
    }
    Json listed = Json::array();
    Json stored = Json::object();
    for (size_t i = 0; i < 2; ++i) {
      const std::string file = "graph/model-0000" + std::to_string(i + 1) + "-of-00002.safetensors";
      std::map<std::string, int64_t> offsets;
      weight_files[file] = safetensors_file(halves[i], offsets);
      listed.push_back({{"path", file}, {"bytes", weight_files[file].size()}});
      for (const auto& [name, tensor] : halves[i]) {
        stored[name] = {{"file", file},
                        {"offset", offsets[name]},
                        {"bytes", tensor.bytes.size()},
                        {"dtype", name_of(tensor.dtype)},
                        {"shape", tensor.shape},
                        {"sha256", sha256(tensor.bytes)},
                        {"fixed", tensor.fixed}};
      }
    }
    manifest["weights"] = {{"included", true}, {"files", listed}, {"tensors", stored}};
  }

  static inline int count_ = 0;
  std::filesystem::path directory_;
};

}  // namespace sala::test
