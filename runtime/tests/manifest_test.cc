// One broken bundle for every rule of the format.

#include "manifest.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "sha256.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

Json shard(int first_layer, int num_layers, const Json& input, const Json& output) {
  return {{"plan", "engine/shard.plan"}, {"report", "engine/shard.json"}, {"log", "engine/shard.log"},
          {"first_layer", first_layer},  {"num_layers", num_layers},      {"inputs", {input}},
          {"outputs", {output}},         {"plugin_library_serialized", first_layer == 0}};
}

Json empty(const char* path) { return {{"path", path}, {"bytes", 0}, {"sha256", sha256(std::string())}}; }

Json valid() {
  const Json stream = {{"name", "hidden_states.2"}, {"dtype", "bfloat16"}, {"shape", {"batch", "tokens", 4}}};
  const Json tensor = {{"name", "x"}, {"dtype", "float32"}, {"shape", {"batch", 4}}};
  const Json weight = {
      {"spec", {{"name", "w"}, {"dtype", "float32"}, {"shape", {2, 4}}}},
      {"parts",
       {{{"file", "graph/m.safetensors"}, {"offset", 3}, {"bytes", 16}, {"dtype", "bfloat16"}, {"dequantization", {}}},
        {{"file", "graph/m.safetensors"},
         {"offset", 0},
         {"bytes", 8},
         {"dtype", "uint8"},
         {"dequantization",
          {{"precision", "nvfp4"},
           {"columns", 4},
           {"scale",
            {{"file", "graph/m.safetensors"},
             {"offset", 8},
             {"bytes", 4},
             {"dtype", "float8_e4m3fn"},
             {"dequantization", {}}}},
           {"scale_shape", {4, 1}},
           {"global_scale", 0.5}}}}}}};
  const Json range = {{"min", 1}, {"opt", 2}, {"max", 3}};
  return {
      {"schema_version", 3},
      {"created_by", "sala-export 0"},
      {"model",
       {{"source", "m"},
        {"config",
         {{"vocab_size", 10},
          {"hidden_size", 8},
          {"intermediate_size", 8},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"head_dim", 4},
          {"mixer_types", {"minicpm4", "lightning-attn", "minicpm4"}},
          {"max_position_embeddings", 64},
          {"eos_token_id", {2, 9}},
          {"sparse_config",
           {{"kernel_size", 32},
            {"kernel_stride", 16},
            {"block_size", 64},
            {"topk", 4},
            {"window_size", 128},
            {"init_blocks", 1},
            {"dense_len", 512}}},
          {"rms_norm_eps", 1e-6},
          {"rope_theta", 1e4},
          {"scale_emb", 12},
          {"scale_depth", 1.4},
          {"dim_model_base", 4},
          {"tie_word_embeddings", false},
          {"bos_token_id", 1},
          {"pad_token_id", nullptr},
          {"residual_depth", 3}}},
        {"inv_freq", {1.0, 0.009999999776482582}},
        {"fingerprint", "f00d"}}},
      {"precision", "bf16"},
      {"graph",
       {{"file", "graph/model.onnx"},
        {"inputs", {tensor}},
        {"outputs", {tensor}},
        {"operators", {{{"layer", 0}, {"type", "LightningAttention"}, {"node", "n"}}}},
        {"weights_included", true},
        {"weights", {{{"path", "graph/m.safetensors"}, {"bytes", 19}, {"sha256", "aa"}}}},
        {"cpu", {{"file", "graph/cpu.onnx"}, {"inputs", {tensor}}, {"outputs", {tensor}}, {"weights", {weight}}}}}},
      {"engine",
       {{"shards", {shard(0, 2, tensor, stream), shard(2, 1, stream, tensor)}},
        {"gpu", "rtx5090"},
        {"gpu_name", "GPU"},
        {"compute_capability", "12.0"},
        {"tensorrt_flavour", "rtx"},
        {"tensorrt_version", "1.7"},
        {"plugin_library_sha256", "bb"},
        {"profiles", {{"prefill", {{"tokens", range}}}}},
        {"device_memory_bytes", {{"weights", 5}}}}},
      {"text", {"text/tokenizer.json"}},
      {"files",
       {{{"path", "graph/cpu.onnx"}, {"bytes", 3}, {"sha256", sha256("abc")}},
        {{"path", "graph/m.safetensors"}, {"bytes", 19}, {"sha256", sha256(std::string(19, 'x'))}},
        empty("engine/shard.plan"),
        empty("engine/shard.json"),
        empty("engine/shard.log"),
        empty("graph/model.onnx"),
        empty("text/tokenizer.json")}},
  };
}

ErrorCode code_of(const Json& json) {
  const auto manifest = parse_manifest(json.dump(), "bundle.json");
  return manifest ? ErrorCode{} : manifest.error().code;
}

TEST(Manifest, ReadsWhatTheRuntimeNeeds) {
  const auto manifest = parse_manifest(valid().dump(), "bundle.json");
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_EQ(manifest->config.eos_token_ids, (std::vector<int32_t>{2, 9}));
  EXPECT_EQ(manifest->config.inv_freq, (std::vector<float>{1.0f, 0.01f}));
  EXPECT_EQ(manifest->config.kernel_stride, 16);
  EXPECT_EQ(manifest->cpu.inputs[0].shape, (std::vector<Extent>{{0, "batch"}, {4, ""}}));
  EXPECT_EQ(manifest->cpu.weights[0].parts[0].offset, 3);
  EXPECT_FALSE(manifest->cpu.weights[0].parts[0].dequantization);
  const Dequantization how = manifest->cpu.weights[0].parts[1].dequantization.value();
  EXPECT_EQ(how.codes, Codes::kNvfp4);
  EXPECT_EQ(how.columns, 4);
  EXPECT_EQ(how.block_rows, 4);
  EXPECT_EQ(how.scale_offset, 8);
  EXPECT_EQ(how.global_scale, 0.5f);
  EXPECT_EQ(manifest->engine.gpu_name, "GPU");
  ASSERT_EQ(manifest->engine.shards.size(), 2u);
  EXPECT_EQ(manifest->engine.shards[1].first_layer, 2);
  EXPECT_EQ(manifest->engine.shards[1].inputs[0].name, "hidden_states.2");
  EXPECT_FALSE(manifest->engine.shards[1].plugin_library_serialized);
}

TEST(Manifest, RefusesEveryMissingField) {
  // Below `config` only what the runtime reads is required.
  const std::function<void(const Json::json_pointer&)> check = [&](const Json::json_pointer& at) {
    const Json whole = valid();
    const Json& value = whole[at];
    for (const auto& [name, member] : value.items()) {
      if (value.is_object() && name != "rope_theta" && at.to_string().find("/profiles") == std::string::npos &&
          at.to_string().find("device_memory") == std::string::npos) {
        Json broken = whole;
        broken[at].erase(name);
        EXPECT_EQ(code_of(broken), ErrorCode::kBundleDamaged) << at.to_string() << "/" << name;
      }
      if (member.is_structured()) check(value.is_array() ? at / std::stoul(name) : at / name);
    }
  };
  check(Json::json_pointer());
}

TEST(Manifest, RefusesValuesThatCannotBe) {
  const std::pair<const char*, Json> changes[] = {
      {"/schema_version", "1"},
      {"/created_by", 1},
      {"/precision", "fp4"},
      {"/precision", "fp32"},
      {"/model/config/mixer_types/3", "minicpm4"},
      {"/model/config/mixer_types", Json::array()},
      {"/model/config/mixer_types", 3},
      {"/engine/shards", Json::array()},
      {"/engine/shards/0/unknown", 1},
      {"/engine/shards/0/num_layers", 0},
      {"/engine/shards/0/first_layer", 1},
      {"/engine/shards/1/first_layer", 1},
      {"/engine/shards/1/num_layers", INT64_MAX},
      {"/engine/shards/0/plan", "../engine.plan"},
      {"/engine/shards/0/outputs/0/name", "hidden_states.1"},
      {"/engine/shards/1/inputs/0/dtype", "float16"},
      {"/engine/shards/1/inputs/0/shape/2", 5},
      {"/unknown", 1},
      {"/model/unknown", 1},
      {"/engine/unknown", 1},
      {"/graph/unknown", 1},
      {"/graph/cpu/unknown", 1},
      {"/graph/cpu/weights/0/parts/0/unknown", 1},
      {"/files/0/unknown", 1},
      {"/model/config/vocab_size", 0},
      {"/model/config/vocab_size", int64_t{1} << 31},
      {"/model/config/head_dim", 6},
      {"/model/config/eos_token_id", 2},
      {"/model/config/eos_token_id/0", 10},
      {"/model/config/eos_token_id/0", -1},
      {"/model/config/sparse_config/kernel_size", 0},
      {"/model/config/sparse_config/kernel_size", int64_t{1} << 62},
      {"/model/inv_freq/1", 0.01},
      {"/model/inv_freq/1", "0.5"},
      {"/model/inv_freq/2", 0.5},
      {"/graph/file", "/model.onnx"},
      {"/graph/weights_included", 1},
      {"/graph/cpu/file", "graph/other.onnx"},
      {"/graph/cpu/inputs/0/dtype", "float8"},
      {"/graph/cpu/inputs/0/shape/1", -4},
      {"/graph/cpu/inputs/0/shape/1", 4.5},
      {"/graph/cpu/weights/0/parts/0/offset", -1},
      {"/graph/cpu/weights/0/parts/0/offset", 4},
      {"/graph/cpu/weights/0/parts/0/bytes", INT64_MAX},
      {"/graph/cpu/weights/0/parts/0/bytes", UINT64_MAX},
      {"/graph/cpu/weights/0/parts/0/file", "graph/n.safetensors"},
      {"/graph/cpu/weights/0/parts/0/dtype", "uint8"},
      {"/graph/cpu/weights/0/parts/1/dequantization/precision", "bf16"},
      {"/graph/cpu/weights/0/parts/1/dequantization/columns", 0},
      {"/graph/cpu/weights/0/parts/1/dequantization/columns", int64_t{1} << 40},
      {"/graph/cpu/weights/0/parts/1/dequantization/scale/file", "../m.safetensors"},
      {"/graph/cpu/weights/0/parts/1/dequantization/scale/file", "graph/n.safetensors"},
      {"/graph/cpu/weights/0/parts/1/dequantization/scale/bytes", 12},
      {"/graph/cpu/weights/0/parts/1/dequantization/scale/dequantization", Json::object()},
      {"/graph/cpu/weights/0/parts/1/dequantization/scale_shape", {4}},
      {"/graph/cpu/weights/0/parts/1/dequantization/scale_shape/1", 0},
      {"/graph/cpu/weights/0/parts/1/dequantization/global_scale", 0.0},
      {"/graph/cpu/weights/0/parts/1/dequantization/global_scale", 1e300},
      {"/engine/profiles/prefill/tokens/max", "many"},
      {"/engine/profiles/prefill/tokens/max", 1},
      {"/engine/tensorrt_flavour", "trt"},
      {"/engine/shards/0/log", "engine/other.log"},
      {"/engine/shards/1/plugin_library_serialized", true},
      {"/graph/file", "graph/other.onnx"},
      {"/graph/weights/0/path", "graph/other.safetensors"},
      {"/text/0", "text/other.json"},
      {"/model/config/unknown", 1},
      {"/model/config/hidden_size", 0},
      {"/model/config/pad_token_id", "0"},
      {"/model/config/mixer_types/0", "mamba"},
      {"/model/config/sparse_config/kernel_stride", 0},
      {"/model/config/sparse_config/kernel_size", 16},
      {"/model/config/sparse_config/block_size", 40},
      {"/model/config/sparse_config/window_size", 100},
      {"/model/config/sparse_config/topk", 1},
      {"/model/config/sparse_config/dense_len", -2},
      {"/files/0/path", "../cpu.onnx"},
      {"/files/0/path", "graph/../../cpu.onnx"},
      {"/files/0/path", "/etc/passwd"},
      {"/files/0/path", ""},
      {"/files/0/bytes", -1},
      {"/text/0", "../tokenizer.json"},
  };
  for (const auto& [pointer, value] : changes) {
    Json broken = valid();
    broken[Json::json_pointer(pointer)] = value;
    EXPECT_EQ(code_of(broken), ErrorCode::kBundleDamaged) << pointer << " = " << value;
  }
}

TEST(Manifest, NamesTheWrongField) {
  Json broken = valid();
  broken["graph"]["cpu"]["weights"][0]["parts"][0]["dtype"] = 7;
  EXPECT_NE(parse_manifest(broken.dump(), "b").error().message.find("graph.cpu.weights[0].parts[0].dtype"),
            std::string::npos);
}

TEST(Manifest, TellsANewerSchemaFromAnOlderOne) {
  for (const auto& [version, advice] : {std::pair(4, "update"), std::pair(0, "build it again")}) {
    Json other = valid();
    other["schema_version"] = version;
    other["whatever"] = "is new";
    const auto manifest = parse_manifest(other.dump(), "b");
    ASSERT_FALSE(manifest);
    EXPECT_EQ(manifest.error().code, ErrorCode::kBundleSchema);
    EXPECT_NE(manifest.error().message.find(advice), std::string::npos) << manifest.error().message;
  }
}

TEST(Manifest, RefusesTextThatIsNoJsonObject) {
  for (const char* text : {"", "{", "[]", "null", "{\"schema_version\": 2,}", "\xff\xfe"}) {
    EXPECT_EQ(parse_manifest(text, "b").error().code, ErrorCode::kBundleDamaged) << text;
  }
  const std::string deep(100'000, '[');
  EXPECT_EQ(parse_manifest(deep, "b").error().code, ErrorCode::kBundleDamaged);
}

class Bundle : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(directory_);
    fs::create_directories(directory_ / "graph");
    fs::create_directories(directory_ / "engine");
    fs::create_directories(directory_ / "text");
    const Json manifest = valid();
    write("bundle.json", manifest.dump());
    for (const Json& file : manifest["files"]) write(file["path"].get<std::string>().c_str(), "");
    write("graph/cpu.onnx", "abc");
    write("graph/m.safetensors", std::string(19, 'x'));
  }
  void TearDown() override { fs::remove_all(directory_); }
  void write(const char* name, const std::string& text) { std::ofstream(directory_ / name, std::ios::binary) << text; }

  ErrorCode read() const {
    const auto manifest = read_manifest(directory_);
    return manifest ? ErrorCode{} : manifest.error().code;
  }

  fs::path directory_;
};

TEST_F(Bundle, IsReadWithItsSizesAndHashes) {
  const auto manifest = read_manifest(directory_);
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_TRUE(verify_hashes(directory_, *manifest));
}

TEST_F(Bundle, IsRefusedIfItIsNone) {
  EXPECT_EQ(read_manifest(directory_ / "missing").error().code, ErrorCode::kBundleMissing);
  EXPECT_EQ(read_manifest(directory_ / "bundle.json").error().code, ErrorCode::kBundleMissing);
  fs::remove(directory_ / "bundle.json");
  EXPECT_EQ(read(), ErrorCode::kBundleMissing);
}

TEST_F(Bundle, IsRefusedWithAFileMissingOrOfAnotherSize) {
  write("graph/cpu.onnx", "ab");
  EXPECT_EQ(read(), ErrorCode::kBundleDamaged);
  fs::remove(directory_ / "graph/cpu.onnx");
  EXPECT_EQ(read(), ErrorCode::kBundleDamaged);
}

TEST_F(Bundle, IsRefusedWithAChangedFile) {
  write("graph/m.safetensors", std::string(18, 'x') + "y");
  const auto manifest = read_manifest(directory_);
  ASSERT_TRUE(manifest);
  EXPECT_EQ(verify_hashes(directory_, *manifest).error().code, ErrorCode::kBundleDamaged);
}

TEST_F(Bundle, WithoutWeightsSaysWhatCanRunIt) {
  Json json = valid();
  json["graph"]["weights_included"] = false;
  json["files"].erase(1);
  write("bundle.json", json.dump());
  const auto model = Model::load(directory_);
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kWeightsMissing);
  EXPECT_NE(model.error().message.find("GPU (compute capability 12.0)"), std::string::npos) << model.error().message;
}

TEST_F(Bundle, NeedsALibraryThatCanBeLoaded) {
  LoadOptions options;
  options.onnxruntime_library = directory_ / "graph/cpu.onnx";
  const auto model = Model::load(directory_, options);
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code, ErrorCode::kLibraryMissing);
}

}  // namespace
}  // namespace sala::test
