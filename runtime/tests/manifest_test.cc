// One broken bundle for every rule of the format.

#include "bundle/manifest.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "base/sha256.h"

namespace sala::test {
namespace {

using Json = nlohmann::json;

Json empty(const char* path) { return {{"path", path}, {"bytes", 0}, {"sha256", sha256(std::string())}}; }

Json valid_config() {
  return {{"vocab_size", 10},
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
          {"residual_depth", 3}};
}

Json stored(int offset, int bytes, const char* dtype, const Json& shape, bool fixed) {
  return {{"file", "graph/m.safetensors"}, {"offset", offset}, {"bytes", bytes}, {"dtype", dtype}, {"shape", shape},
          {"sha256", sha256("cc")},        {"fixed", fixed}};
}

Json valid_weights() {
  return {{"included", true},
          {"files", {{{"path", "graph/m.safetensors"}, {"bytes", 27}}}},
          {"tensors",
           {{"plain", stored(3, 16, "bfloat16", {2, 4}, false)},
            {"codes", stored(0, 8, "uint8", {4, 2}, false)},
            {"scales", stored(8, 4, "float8_e4m3fn", {4, 1}, true)},
            {"scale", stored(19, 4, "float32", Json::array(), false)},
            {"factor", stored(23, 4, "float32", {1}, false)}}}};
}

Json valid_engine(const Json& weight) {
  const Json range = {{"min", 1}, {"opt", 2}, {"max", 3}};
  const Json ranges = {{"tokens", range}, {"rows", range}, {"capacity", range}};
  return {{"plan", "engine/engine.plan"},
          {"report", "engine/report.json"},
          {"log", "engine/build.log"},
          {"graph", "engine/engine.onnx"},
          {"weights", {weight}},
          {"target", "rtx"},
          {"gpus",
           {{{"recipe", "rtx5090"},
             {"name", "GPU"},
             {"compute_capability", "12.0"},
             {"memory_bytes", 32},
             {"reserve_bytes", 1},
             {"max_context", 1024}}}},
          {"compute_capabilities", {"8.6", "12.0"}},
          {"tensorrt_flavour", "rtx"},
          {"tensorrt_version", "1.7"},
          {"plugin_library_sha256", sha256("bb")},
          {"profiles", {{"prefill", ranges}, {"decode", ranges}}},
          {"device_memory_bytes", {{"weights", 5}}}};
}

Json tensor(const char* name, const char* dtype, const Json& shape) {
  return {{"name", name}, {"dtype", dtype}, {"shape", shape}};
}

Json step_inputs(const char* cache = "float32") {
  return {tensor("input_ids", "int64", {"batch", "tokens"}),
          tensor("past_length", "int32", {"batch"}),
          tensor("context_length", "int32", {"batch"}),
          tensor("rope_cos_sin", "float32", {"batch", "tokens", 4}),
          tensor("logit_rows", "int32", {"rows"}),
          tensor("past_key_values.0.key", cache, {"batch", 2, "capacity", 4})};
}

Json step_outputs(const char* cache = "float32") {
  return {tensor("logits", "float32", {"rows", 10}), tensor("present.0.key", cache, {"batch", 2, "capacity", 4})};
}

Json cpu_form(const char* file, const char* cache) {
  return {{"file", file}, {"inputs", step_inputs(cache)}, {"outputs", step_outputs(cache)}};
}

Json valid() {
  const Json scales = {{"tensor", "scale"}, {"rows", 6}, {"factor", "factor"}};
  const Json plain = {{"tensor", "plain"}, {"rows", nullptr}, {"factor", nullptr}};
  const Json codes = {{"tensor", "codes"}};
  return {
      {"schema_version", 6},
      {"created_by", "sala-export 0"},
      {"model",
       {{"source", "m"},
        {"config", valid_config()},
        {"config_sha256", sha256("dd")},
        {"inv_freq", {1.0, 0.009999999776482582}},
        {"fingerprint", sha256("f00d")}}},
      {"precision", "bf16"},
      {"weights", valid_weights()},
      {"graph",
       {{"file", "graph/model.onnx"},
        {"inputs", step_inputs()},
        {"outputs", step_outputs()},
        {"operators", {{{"layer", 0}, {"type", "LightningAttention"}, {"node", "n"}}}},
        {"cpu",
         {{"weights",
           {{{"spec", tensor("plain", "bfloat16", {2, 4})}, {"parts", {plain}}},
            {{"spec", tensor("codes", "uint8", {4, 2})}, {"parts", {codes}}},
            {{"spec", tensor("scales", "float8_e4m3fn", {4, 1})}, {"parts", {{{"tensor", "scales"}}}}}}},
          {"exact", cpu_form("graph/cpu.onnx", "float32")},
          {"fast", cpu_form("graph/cpu_fast.onnx", "bfloat16")}}}}},
      {"engine", valid_engine({{"spec", {{"name", "s"}, {"dtype", "float32"}, {"shape", {6}}}}, {"parts", {scales}}})},
      {"text", {"text/tokenizer.json"}},
      {"files",
       {{{"path", "graph/cpu.onnx"}, {"bytes", 3}, {"sha256", sha256("abc")}},
        empty("graph/cpu_fast.onnx"),
        empty("engine/engine.plan"),
        empty("engine/report.json"),
        empty("engine/build.log"),
        empty("engine/engine.onnx"),
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
  EXPECT_EQ(manifest->config.dense_len, 512);
  const CpuForm& exact = manifest->cpu.form(CpuMath::kExact);
  EXPECT_EQ(exact.file, "graph/cpu.onnx");
  EXPECT_EQ(exact.inputs[5].shape, (std::vector<Extent>{{0, "batch"}, {2, ""}, {0, "capacity"}, {4, ""}}));
  const CpuForm& fast = manifest->cpu.form(CpuMath::kFast);
  EXPECT_EQ(fast.file, "graph/cpu_fast.onnx");
  EXPECT_EQ(fast.inputs[5].dtype, DType::kBFloat16);
  EXPECT_EQ(fast.outputs[1].dtype, DType::kBFloat16);
  ASSERT_EQ(manifest->cpu.weights.size(), 3u);
  EXPECT_EQ(manifest->cpu.weights[1].spec.dtype, DType::kUInt8);
  const auto& parts = manifest->cpu.weights[0].parts;
  EXPECT_EQ(parts[0].tensor, "plain");
  EXPECT_EQ(parts[0].rows, 0);
  EXPECT_EQ(manifest->engine.weights[0].parts[0].rows, 6);
  EXPECT_EQ(manifest->engine.weights[0].parts[0].tensors(), (std::vector<std::string>{"scale", "factor"}));
  EXPECT_EQ(manifest->engine.plan, "engine/engine.plan");
  EXPECT_EQ(manifest->engine.gpus[0].name, "GPU");
  EXPECT_EQ(manifest->engine.compute_capabilities, (std::vector<std::string>{"8.6", "12.0"}));
  EXPECT_EQ(manifest->tensors.at("plain").offset, 3);
  EXPECT_EQ(manifest->tensors.at("plain").shape, (Shape{2, 4}));
  EXPECT_TRUE(manifest->tensors.at("scales").fixed);
  EXPECT_EQ(manifest->weight_files[0], std::pair("graph/m.safetensors" + std::string(), int64_t{27}));
  EXPECT_EQ(manifest->model_config["rms_norm_eps"], 1e-6);
}

TEST(Manifest, MayHaveNoEngine) {
  Json json = valid();
  json["engine"] = nullptr;
  const auto manifest = parse_manifest(json.dump(), "bundle.json");
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_FALSE(manifest->has_engine());
  EXPECT_TRUE(parse_manifest(valid().dump(), "bundle.json")->has_engine());
}

TEST(Manifest, RefusesEveryMissingField) {
  // What has a default may be left out.
  const std::set<std::string> optional = {"fixed", "rows", "factor"};
  const std::function<void(const Json::json_pointer&)> check = [&](const Json::json_pointer& at) {
    const Json whole = valid();
    const Json& value = whole[at];
    for (const auto& [name, member] : value.items()) {
      // Names of profiles and parts of memory are free; a tensor that no part names is not needed.
      const std::string path = at.to_string();
      const bool is_free = path.starts_with("/engine/profiles") || path.starts_with("/engine/device_memory");
      if (value.is_object() && !is_free && !optional.contains(name)) {
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
      {"/model/config/mixer_types", Json::array()},
      {"/model/config/mixer_types", 3},
      {"/unknown", 1},
      {"/model/unknown", 1},
      {"/weights/unknown", 1},
      {"/weights/files/0/unknown", 1},
      {"/weights/tensors/plain/unknown", 1},
      {"/engine/unknown", 1},
      {"/engine/gpus/0/unknown", 1},
      {"/graph/unknown", 1},
      {"/graph/cpu/unknown", 1},
      {"/graph/cpu/weights/0/parts/0/unknown", 1},
      {"/graph/cpu/weights/0/parts/0/dequantization", nullptr},
      {"/graph/cpu/exact/unknown", 1},
      {"/graph/cpu/fast/unknown", 1},
      {"/files/0/unknown", 1},
      {"/model/config_sha256", 1},
      {"/model/config/vocab_size", 0},
      {"/model/config/vocab_size", int64_t{1} << 31},
      {"/model/config/head_dim", 6},
      {"/model/config/eos_token_id", 2},
      {"/model/config/eos_token_id", {10}},
      {"/model/inv_freq", {1.0}},
      {"/model/inv_freq/1", 0.01},
      {"/graph/cpu/exact/file", "graph/other.onnx"},
      {"/graph/cpu/fast/file", "graph/other.onnx"},
      {"/graph/cpu/exact/inputs/0/dtype", "float8"},
      {"/graph/cpu/exact/inputs/0/shape/1", -4},
      {"/graph/cpu/exact/inputs/0/shape/1", 4.5},
      {"/graph/cpu/exact/inputs/0/shape/1", "words"},
      {"/graph/cpu/fast/inputs/5/shape/1", 0},
      {"/graph/cpu/fast/inputs/5/shape/1", INT64_MAX},
      {"/graph/cpu/exact/outputs/1/dtype", "int8"},
      {"/graph/cpu/fast/outputs/1/dtype", "float32"},
      {"/graph/cpu/exact/outputs/1/name", "present.1.key"},
      {"/graph/cpu/exact", cpu_form("graph/cpu.onnx", "bfloat16")},
      {"/graph/cpu/fast", cpu_form("graph/cpu_fast.onnx", "float16")},
      {"/graph/inputs/1/name", "input_ids"},
      {"/graph/inputs/3/shape/2", 8},
      {"/graph/cpu/weights/0/spec/shape/0", "tokens"},
      {"/graph/cpu/weights/0/spec/shape/0", 0},
      {"/graph/cpu/weights/0/spec/name", "input_ids"},
      {"/graph/cpu/weights/0/spec/name", "codes"},
      {"/graph/cpu/weights/0/parts", Json::array()},
      {"/weights/included", 1},
      {"/weights/files/0/path", "../m.safetensors"},
      {"/weights/files/0/path", "graph/other.safetensors"},
      {"/weights/files/0/bytes", -1},
      {"/weights/files/0/bytes", 26},
      {"/weights/tensors/plain/file", "graph/n.safetensors"},
      {"/weights/tensors/plain/offset", -1},
      {"/weights/tensors/plain/offset", 12},
      {"/weights/tensors/plain/offset", INT64_MAX},
      {"/weights/tensors/plain/bytes", 15},
      {"/weights/tensors/plain/bytes", UINT64_MAX},
      {"/weights/tensors/plain/dtype", "float32"},
      {"/weights/tensors/plain/dtype", "complex64"},
      {"/weights/tensors/codes/dtype", "float4_e2m1fn"},
      {"/weights/tensors/plain/shape", {2, 5}},
      {"/weights/tensors/plain/shape", {INT64_MAX, INT64_MAX}},
      {"/weights/tensors/plain/sha256", 1},
      {"/weights/tensors/plain/sha256", std::string(64, 'A')},
      {"/weights/tensors/plain/sha256", std::string(63, 'a')},
      {"/weights/tensors/plain/shape", {8, 0}},
      {"/weights/files/0/path", "graph/cpu.onnx"},
      {"/weights/tensors/plain/fixed", 1},
      {"/graph/cpu/weights/0/parts/0/tensor", "none"},
      {"/graph/cpu/weights/1/parts/0/factor", "factor"},
      {"/engine/weights/0/parts/0/tensor", "none"},
      {"/engine/weights/0/parts/0/rows", 0},
      {"/engine/weights/0/parts/0/rows", 28},
      {"/engine/weights/0/parts/0/factor", ""},
      {"/engine/weights/0/parts/0/rows", nullptr},
      {"/engine/weights/0/parts/0/factor", "none"},
      {"/engine/compute_capabilities", Json::array()},
      {"/engine/gpus/0/max_context", -1},
      {"/engine/profiles/prefill/tokens/max", "many"},
      {"/engine/profiles/prefill/tokens/min", 0},
      {"/engine/profiles/prefill/tokens/max", int64_t{1} << 31},
      {"/engine/profiles/decode", {{"tokens", {{"min", 1}, {"opt", 1}, {"max", 1}}}}},
      {"/engine/profiles/prefill/tokens/max", 1},
      {"/engine/tensorrt_flavour", "trt"},
      {"/engine/plan", "../engine.plan"},
      {"/engine/log", "engine/other.log"},
      {"/engine/graph", "engine/other.onnx"},
      {"/graph/file", "graph/other.onnx"},
      {"/text/0", "text/other.json"},
      {"/model/config/unknown", 1},
      {"/model/config/hidden_size", 0},
      {"/model/config/pad_token_id", "0"},
      {"/model/config/bos_token_id", 10},
      {"/model/config/rope_theta", 0},
      {"/model/config/scale_emb", true},
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
      {"/files/0/path", "."},
      {"/files/0/path", "graph//cpu.onnx"},
      {"/files/0/path", "graph/./cpu.onnx"},
      {"/files/0/path", "graph/cpu.onnx/"},
      {"/files/1/path", "graph/cpu.onnx"},
      {"/files/0/bytes", -1},
      {"/text/0", "../tokenizer.json"},
  };
  for (const auto& [pointer, value] : changes) {
    Json broken = valid();
    broken[Json::json_pointer(pointer)] = value;
    EXPECT_EQ(code_of(broken), ErrorCode::kBundleDamaged) << pointer << " = " << value;
  }
}

/// A whole manifest, whose engine takes words of two tensors of scales too.
Json with_words() {
  Json json = valid();
  json["precision"] = "mxfp8";
  json["weights"]["files"][0]["bytes"] = 67;
  json["weights"]["tensors"]["a"] = stored(27, 16, "uint8", {2, 8}, false);
  json["weights"]["tensors"]["b"] = stored(43, 24, "uint8", {3, 8}, false);
  json["engine"]["weights"].push_back({{"spec", tensor("words", "int32", {2, 5})},
                                       {"parts", {{{"tensor", "a"}}, {{"tensor", "b"}, {"rows", nullptr}}}},
                                       {"layout", "word_columns"}});
  return json;
}

TEST(Manifest, ReadsAnInputOfWordColumns) {
  const auto manifest = parse_manifest(with_words().dump(), "bundle.json");
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_EQ(manifest->precision, "mxfp8");
  EXPECT_FALSE(manifest->engine.weights[0].is_word_columns);
  EXPECT_TRUE(manifest->engine.weights[1].is_word_columns);
  EXPECT_EQ(manifest->engine.weights[1].parts[1].tensor, "b");
  Json plain = with_words();
  plain["engine"]["weights"][1]["layout"] = nullptr;
  EXPECT_FALSE(parse_manifest(plain.dump(), "bundle.json")->engine.weights[1].is_word_columns);
}

TEST(Manifest, RefusesAnInputOfWordColumnsThatItsTensorsDoNotFill) {
  const std::pair<const char*, Json> changes[] = {
      {"/engine/weights/1/layout", "columns"},
      {"/engine/weights/1/layout", ""},
      {"/engine/weights/1/layout", true},
      {"/engine/weights/1/unknown", 1},
      {"/engine/weights/1/spec/dtype", "uint8"},
      {"/engine/weights/1/spec/dtype", "float32"},
      {"/engine/weights/1/spec/shape", {10}},
      {"/engine/weights/1/spec/shape", {1, 2, 5}},
      {"/engine/weights/1/spec/shape", {2, 4}},
      {"/engine/weights/1/spec/shape", {2, 6}},
      {"/engine/weights/1/spec/shape", {1, 5}},
      {"/engine/weights/1/spec/shape", {INT64_MAX / 4, 1}},
      {"/engine/weights/1/spec/shape", {2, "rows"}},
      {"/engine/weights/1/parts/0/rows", 2},
      {"/engine/weights/1/parts/0/tensor", "none"},
      {"/engine/weights/1/parts/1/tensor", "a"},
      {"/engine/weights/1/parts", Json::array()},
      {"/weights/tensors/a", stored(27, 16, "int8", {2, 8}, false)},
      {"/weights/tensors/a", stored(27, 16, "uint8", {16}, false)},
      {"/weights/tensors/a", stored(27, 16, "uint8", {2, 8, 1}, false)},
      {"/weights/tensors/a", stored(27, 14, "uint8", {2, 7}, false)},
      {"/weights/tensors/a", stored(27, 8, "uint8", {2, 4}, false)},
      {"/weights/tensors/b", stored(43, 16, "uint8", {2, 8}, false)},
  };
  for (const auto& [pointer, value] : changes) {
    Json broken = with_words();
    broken[Json::json_pointer(pointer)] = value;
    EXPECT_EQ(code_of(broken), ErrorCode::kBundleDamaged) << pointer << " = " << value;
  }
}

TEST(Manifest, DoesNotCalculateWithNumbersThatItRefuses) {
  Json broken = valid();
  broken["weights"]["files"][0]["bytes"] = INT64_MAX;
  broken["weights"]["tensors"]["plain"]["shape"] = {-1};
  broken["weights"]["tensors"]["plain"]["bytes"] = -1;
  const auto manifest = parse_manifest(broken.dump(), "b");
  ASSERT_FALSE(manifest);
  EXPECT_NE(manifest.error().message.find("weights.tensors.plain.bytes"), std::string::npos);
}

TEST(Manifest, NamesTheWrongField) {
  Json broken = valid();
  broken["graph"]["cpu"]["weights"][0]["parts"][0]["tensor"] = 7;
  EXPECT_NE(parse_manifest(broken.dump(), "b").error().message.find("graph.cpu.weights[0].parts[0].tensor"),
            std::string::npos);
}

TEST(Manifest, TellsANewerSchemaFromAnOlderOne) {
  const auto refusal = [](const Json& json) {
    const auto manifest = parse_manifest(json.dump(), "b");
    EXPECT_EQ(manifest.error().code, ErrorCode::kBundleSchema);
    return manifest.error().message;
  };
  EXPECT_EQ(refusal({{"schema_version", 7}, {"whatever", "is new"}}),
            "b has schema_version 7, this release reads 6: update sala-export");
  EXPECT_EQ(refusal({{"schema_version", 4},
                     {"model", {{"source", "org/name@0123"}}},
                     {"engine", {{"gpu", "rtx5090"}}},
                     {"precision", "fp8"}}),
            "b has schema_version 4, this release reads 6: build it again: sala-export build --gpu rtx5090 --model "
            "org/name --precision fp8");
  EXPECT_EQ(refusal({{"schema_version", 0}, {"model", {1}}, {"engine", {{"gpu", "a; b"}}}, {"precision", "$(c)\n"}}),
            "b has schema_version 0, this release reads 6: build it again: sala-export build --gpu GPU --model "
            "DIR_OR_HUB_ID --precision bf16");
}

TEST(Manifest, RefusesTextThatIsNoJsonObject) {
  for (const char* text : {"", "{", "[]", "null", "{\"schema_version\": 2,}", "\xff\xfe"}) {
    EXPECT_EQ(parse_manifest(text, "b").error().code, ErrorCode::kBundleDamaged) << text;
  }
  const std::string deep(100'000, '[');
  EXPECT_EQ(parse_manifest(deep, "b").error().code, ErrorCode::kBundleDamaged);
}

TEST(Manifest, RefusesWhatParsersReadInSeveralWays) {
  const std::string text = valid().dump();
  ASSERT_TRUE(parse_manifest(text, "b"));
  EXPECT_FALSE(parse_manifest("\xef\xbb\xbf" + text, "b")) << "a byte order mark";
  EXPECT_FALSE(parse_manifest(text + std::string(1, '\0'), "b")) << "a null character";
  EXPECT_FALSE(parse_manifest(R"({"created_by": "me", )" + text.substr(1), "b")) << "a field twice";
  EXPECT_FALSE(parse_manifest(R"({"created_b\u0079": "me", )" + text.substr(1), "b")) << "a field twice, escaped";
  EXPECT_TRUE(parse_manifest(" " + text + "\n", "b"));
}

TEST(Json, IsRefusedBeyondSixtyFourLevels) {
  const auto nested = [](size_t levels) { return std::string(levels, '[') + std::string(levels, ']'); };
  EXPECT_TRUE(parse_json(nested(64)));
  EXPECT_FALSE(parse_json(nested(65)));
  EXPECT_FALSE(parse_json(nested(20'000'000))) << "takes no memory";
  EXPECT_TRUE(parse_json("[\"" + std::string(100, '[') + "\\\"" + std::string(100, '[') + "\"]")) << "in a string";
}

}  // namespace
}  // namespace sala::test
