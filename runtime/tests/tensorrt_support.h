// A bundle of the mock model for the fake TensorRT, and the fakes themselves.

#pragma once

#include <dlfcn.h>
#include <elf.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "fakes/fake_cuda.h"
#include "fakes/fake_tensorrt.h"
#include "mock_engine.h"
#include "sala/model.h"
#include "sha256.h"

namespace sala::test {

using Json = nlohmann::json;

constexpr int64_t kChunk = 16;
constexpr int64_t kCapacity = 4096;
constexpr int64_t kLeastCapacity = 8;
constexpr int64_t kActivationBytes[2][2] = {{4096, 1024}, {8192, 512}};  // by shard and profile

inline FakeCuda& cuda() {
  // By its path first: the engine then gets this one for the name of the real driver.
  static void* library = dlopen(FAKE_CUDA, RTLD_NOW | RTLD_LOCAL);
  return *reinterpret_cast<FakeCuda* (*)()>(dlsym(library, "fake_cuda"))();
}

inline FakeTensorRt& tensorrt_fake() {
  static void* library = dlopen(FAKE_TENSORRT, RTLD_NOW | RTLD_LOCAL);
  return *reinterpret_cast<FakeTensorRt* (*)()>(dlsym(library, "fake_tensorrt"))();
}

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

/// One part of the step: the tensors of a shard.
struct ShardTensors {
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;
};

inline std::vector<ShardTensors> cut(int shards) {
  const MockEngine step;
  if (shards == 1) return {{step.inputs_, step.outputs_}};
  const TensorSpec stream{"hidden_states.1", DType::kFloat32, {{0, "batch"}, {0, "tokens"}, {1 + kHeads, {}}}};
  std::vector<ShardTensors> result = {{{}, {stream}}, {{stream}, {}}};
  for (const TensorSpec& spec : step.inputs_) {
    const bool first = spec.name == "input_ids" || spec.name == "context_length" || spec.name == "rope_cos_sin" ||
                       spec.name.find(".0.") != std::string::npos;
    if (first || spec.name == "past_length") result[0].inputs.push_back(spec);
    if (!first) result[1].inputs.push_back(spec);
  }
  for (const TensorSpec& spec : step.outputs_) {
    result[spec.name.find(".0.") != std::string::npos ? 0 : 1].outputs.push_back(spec);
  }
  return result;
}

inline SymbolSizes largest_sizes(int64_t tokens) {
  return {{"batch", 1}, {"tokens", tokens}, {"capacity", kCapacity}, {"capacity_k1", 2047}, {"capacity_k2", 511}};
}

inline int32_t trt_type(DType dtype) { return dtype == DType::kInt64 ? 8 : dtype == DType::kInt32 ? 3 : 0; }

/// What a real plan says of itself, in the words of the fake.
inline std::string plan_text(const ShardTensors& tensors, const int64_t (&activations)[2]) {
  std::ostringstream text;
  text << "fake-plan activation " << activations[0] << " " << activations[1] << "\n";
  const auto write = [&](const TensorSpec& spec, int mode) {
    text << "tensor " << mode << " " << spec.name << " " << trt_type(spec.dtype) << " " << spec.shape.size();
    for (const int64_t extent : spec.bound({})) text << " " << extent;
    for (const int64_t tokens : {kChunk, int64_t{1}}) {
      for (const int64_t extent : spec.bound(largest_sizes(tokens))) {
        if (mode == 1) text << " " << extent;
      }
    }
    text << "\n";
  };
  for (const TensorSpec& spec : tensors.inputs) write(spec, 1);
  for (const TensorSpec& spec : tensors.outputs) write(spec, 2);
  text << "end\n";
  return text.str();
}

inline Json json_of(const std::vector<TensorSpec>& specs) {
  Json result = Json::array();
  for (const TensorSpec& spec : specs) {
    Json shape = Json::array();
    for (const Extent& extent : spec.shape)
      shape.push_back(extent.symbol.empty() ? Json(extent.value) : Json(extent.symbol));
    result.push_back({{"name", spec.name}, {"dtype", name_of(spec.dtype)}, {"shape", shape}});
  }
  return result;
}

/// A bundle on disk whose manifest and files may be changed before it is written.
class FakeBundle {
 public:
  explicit FakeBundle(int shards = 1) {
    directory_ = std::filesystem::path(testing::TempDir()) / ("bundle-" + std::to_string(count_++)) / "mock.sala";
    std::filesystem::remove_all(directory_.parent_path());  // of an earlier run
    Json entries = Json::array();
    const auto parts = cut(shards);
    for (int i = 0; i < shards; ++i) {
      const std::string name = "engine/shard-0" + std::to_string(i);
      files[name + ".plan"] =
          plan_text(parts[static_cast<size_t>(i)], kActivationBytes[i]) + (i == 0 ? host_library() : "");
      for (const char* kind : {".json", ".log"}) files[name + kind] = "not used";
      entries.push_back({{"plan", name + ".plan"},
                         {"report", name + ".json"},
                         {"log", name + ".log"},
                         {"first_layer", i},
                         {"num_layers", shards == 1 ? 2 : 1},
                         {"inputs", json_of(parts[static_cast<size_t>(i)].inputs)},
                         {"outputs", json_of(parts[static_cast<size_t>(i)].outputs)},
                         {"plugin_library_serialized", i == 0}});
    }
    for (const char* name : {"graph/model.onnx", "graph/cpu.onnx"}) files[name] = "not used";
    const MockEngine step;
    const ModelConfig config = mock_config();
    manifest = {
        {"schema_version", 3},
        {"created_by", "tests"},
        {"model",
         {{"source", config.source},
          {"fingerprint", config.fingerprint},
          {"inv_freq", config.inv_freq},
          {"config",
           {{"vocab_size", kVocabSize},
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
            {"residual_depth", 2}}}}},
        {"precision", "bf16"},
        {"graph",
         {{"file", "graph/model.onnx"},
          {"inputs", json_of(step.inputs_)},
          {"outputs", json_of(step.outputs_)},
          {"operators", Json::array()},
          {"weights_included", false},
          {"weights", Json::array()},
          {"cpu",
           {{"file", "graph/cpu.onnx"},
            {"inputs", Json::array()},
            {"outputs", Json::array()},
            {"weights", Json::array()}}}}},
        {"engine",
         {{"shards", entries},
          {"gpu", "fake"},
          {"gpu_name", "Fake GPU"},
          {"compute_capability", "12.0"},
          {"tensorrt_flavour", "rtx"},
          {"tensorrt_version", "1.7.1.116"},
          {"plugin_library_sha256", sha256(host_library())},
          {"profiles", {{"prefill", ranges(kChunk)}, {"decode", ranges(1)}}},
          {"device_memory_bytes", Json::object()}}},
        {"text", Json::array()},
    };
  }

  FakeBundle(const FakeBundle&) = delete;
  FakeBundle& operator=(const FakeBundle&) = delete;
  ~FakeBundle() { std::filesystem::remove_all(directory_.parent_path()); }

  /// Writes what was not written yet; hashes of files are theirs at the first writing.
  const std::filesystem::path& write() {
    if (!manifest.contains("files")) {
      manifest["files"] = Json::array();
      for (const auto& [name, content] : files) {
        manifest["files"].push_back({{"path", name}, {"bytes", content.size()}, {"sha256", sha256(content)}});
      }
    }
    for (const auto& [name, content] : files) {
      std::filesystem::create_directories((directory_ / name).parent_path());
      std::ofstream(directory_ / name, std::ios::binary) << content;
    }
    std::ofstream(directory_ / "bundle.json") << manifest.dump();
    return directory_;
  }

  std::filesystem::path runtime_cache() const { return directory_.string() + ".runtime-cache"; }

  Json manifest;
  std::map<std::string, std::string> files;

 private:
  static Json ranges(int64_t tokens) {
    Json result;
    for (const auto& [symbol, most] : largest_sizes(tokens)) {
      const int64_t least = symbol == "capacity" ? kLeastCapacity : 1;
      result[symbol] = {{"min", least}, {"opt", most}, {"max", most}};
    }
    return result;
  }

  static inline int count_ = 0;
  std::filesystem::path directory_;
};

/// Fresh fakes for every test, which must leave nothing behind.
class TensorRt : public testing::Test {
 protected:
  void SetUp() override {
    cuda() = FakeCuda();
    tensorrt_fake() = FakeTensorRt();
  }

  void TearDown() override {
    EXPECT_EQ(cuda().used_bytes(), 0);
    EXPECT_TRUE(cuda().pinned_blocks.empty());
    EXPECT_EQ(cuda().contexts, 0);
    EXPECT_EQ(cuda().streams, 0);
    EXPECT_EQ(cuda().graphs, 0);
    EXPECT_EQ(tensorrt_fake().objects, 0);
  }

  static LoadOptions options() {
    LoadOptions options;
    options.runtime = Runtime::kTensorRt;
    options.tensorrt.library = FAKE_TENSORRT;
    return options;
  }

  static Expected<Model> load(FakeBundle& bundle) { return Model::load(bundle.write(), options()); }

  static std::vector<std::string> take_events() { return std::exchange(tensorrt_fake().events, {}); }

  static void expect_error(const Error& error, ErrorCode code, std::initializer_list<std::string> words) {
    EXPECT_EQ(name_of(error.code), name_of(code)) << error.message;
    EXPECT_EQ(error.message.find('\n'), std::string::npos) << error.message;
    for (const std::string& word : words)
      EXPECT_NE(error.message.find(word), std::string::npos) << word << ": " << error.message;
  }
};

}  // namespace sala::test
