// What a source reads, what it finds damaged, and which checkpoints may take the place of a bundle's weights.

#include "weights/weight_source.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "checkpoint_files.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class Sources : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    manifest_.precision = "bf16";
    manifest_.config_sha256 = "c0ffee";
    manifest_.model_config = {{"hidden_size", 8},
                              {"rms_norm_eps", 1e-6},
                              {"rope_theta", 1e4},
                              {"scale_emb", 12},
                              {"scale_depth", 1},
                              {"tie_word_embeddings", false},
                              {"mixer_types", {"minicpm4", "lightning-attn"}},
                              {"sparse_config", {{"topk", 4}, {"dense_len", 8192}}},
                              {"eos_token_id", {2}},
                              {"bos_token_id", nullptr},
                              {"residual_depth", 2}};
    config_ = {{"model_type", "minicpm_sala"},
               {"hidden_size", 8},
               {"rms_norm_eps", 1e-6},
               {"rope_theta", 10000},
               {"scale_emb", 12.0},
               {"mixer_types", {"minicpm4", "lightning-attn"}},
               {"num_hidden_layers", 2},
               {"sparse_config", {{"topk", 4}, {"use_nope", false}}},
               {"eos_token_id", 7},
               {"unknown", {1, 2}}};
    write("config.json", config_.dump());
    store("model.safetensors", tensors_);
  }

  /// The error of a checkpoint, empty if it is taken.
  Error refusal() const {
    const auto source = WeightSource::of_checkpoint(directory_, manifest_);
    return source ? Error{} : source.error();
  }
  void expect_refused(std::initializer_list<const char*> words, ErrorCode code = ErrorCode::kWeightsUnsuitable) const {
    const Error error = refusal();
    EXPECT_EQ(error.code, code);
    for (const char* word : words) EXPECT_NE(error.message.find(word), std::string::npos) << error.message;
    EXPECT_EQ(error.message.find('\n'), std::string::npos);
  }
  /// Writes the checkpoint's tensors, not what the bundle expects of them.
  void write_tensors(const std::vector<FileTensor>& tensors, const char* file = "model.safetensors") const {
    write(file, safetensors(tensors));
  }

  Json config_;
  std::vector<FileTensor> tensors_ = {{"a.weight", "BF16", {2, 2}, "abcdefgh"}, {"b.weight", "F32", {1}, "ijkl"}};
};

TEST_F(Sources, ReadTheTensorsOfABundle) {
  const auto source = WeightSource::of_bundle(bundle());
  ASSERT_TRUE(source) << source.error().message;
  EXPECT_EQ((*source)->tensor("a.weight").shape, (Shape{2, 2}));
  EXPECT_EQ(*(*source)->read_all("b.weight"), "ijkl");
  auto reader = (*source)->open("a.weight");
  char buffer[5] = "";
  ASSERT_TRUE(reader.read(buffer, 4));
  EXPECT_STREQ(buffer, "abcd");
  ASSERT_TRUE(reader.read(buffer, 4));
  EXPECT_STREQ(buffer, "efgh");
  EXPECT_TRUE(reader.finish());
}

TEST_F(Sources, NameADamagedTensor) {
  write_tensors({tensors_[0], {"b.weight", "F32", {1}, "ijkm"}});
  const auto source = WeightSource::of_bundle(bundle());
  ASSERT_TRUE(source);
  EXPECT_TRUE((*source)->read_all("a.weight"));
  const auto damaged = (*source)->read_all("b.weight");
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().code, ErrorCode::kBundleDamaged);
  EXPECT_EQ(damaged.error().message, "tensor b.weight in " + (directory_ / "model.safetensors").string() +
                                         " has another SHA-256 than bundle.json says: it was changed or damaged, copy "
                                         "the bundle again");
}

TEST_F(Sources, OfABundleMustHaveTheirHashes) {
  manifest_.tensors.at("a.weight").sha256 = "";
  const auto source = WeightSource::of_bundle(bundle());
  ASSERT_TRUE(source);
  EXPECT_FALSE((*source)->read_all("a.weight"));
}

TEST_F(Sources, NameATensorBehindTheEndOfItsFile) {
  const auto source = WeightSource::of_bundle(bundle());
  ASSERT_TRUE(source);
  fs::resize_file(directory_ / "model.safetensors", fs::file_size(directory_ / "model.safetensors") - 2);
  const auto truncated = (*source)->read_all("b.weight");
  ASSERT_FALSE(truncated);
  EXPECT_EQ(truncated.error().code, ErrorCode::kBundleDamaged);
  EXPECT_NE(truncated.error().message.find("tensor b.weight"), std::string::npos);
  EXPECT_NE(truncated.error().message.find("model.safetensors ends at byte"), std::string::npos);
}

TEST_F(Sources, OfABundleWithoutWeightsSayHowToGiveThem) {
  manifest_.weights_included = false;
  const auto source = WeightSource::of_bundle(bundle());
  ASSERT_FALSE(source);
  EXPECT_EQ(source.error().code, ErrorCode::kWeightsMissing);
  EXPECT_NE(source.error().message.find("--no-weights: give the checkpoint's directory as weights (--weights DIR)"),
            std::string::npos);
  EXPECT_EQ(refusal().message, "");
}

TEST_F(Sources, HaveTheFingerprintOfTheirFormat) {
  const std::string expected = sha256("config c0ffee\na.weight " + sha256(std::string("abcdefgh")) + "\nb.weight " +
                                      sha256(std::string("ijkl")) + "\n");
  const auto own = WeightSource::of_bundle(bundle());
  EXPECT_EQ(*(*own)->fingerprint(), expected);
  const auto checkpoint = WeightSource::of_checkpoint(directory_, manifest_);
  ASSERT_TRUE((*checkpoint)->read_all("a.weight"));  // the other was not read yet
  EXPECT_EQ(*(*checkpoint)->fingerprint(), expected);
  write_tensors({tensors_[0], {"b.weight", "F32", {1}, "ijkm"}});
  EXPECT_NE(*(*WeightSource::of_checkpoint(directory_, manifest_))->fingerprint(), expected);
}

TEST_F(Sources, NoticeThatAFileChangesWhileItIsRead) {
  const auto source = WeightSource::of_checkpoint(directory_, manifest_);
  ASSERT_TRUE((*source)->read_all("b.weight"));
  write_tensors({tensors_[0], {"b.weight", "F32", {1}, "ijkm"}});
  const auto changed = (*source)->read_all("b.weight");
  ASSERT_FALSE(changed);
  EXPECT_NE(changed.error().message.find("changed while it was loaded"), std::string::npos);
}

TEST_F(Sources, ReadTheFilesWhoseHeadersTheyHaveChecked) {
  const auto source = WeightSource::of_checkpoint(directory_, manifest_);
  write_tensors({{"b.weight", "F32", {1}, "1234"}, {"a.weight", "BF16", {2, 2}, "12345678"}}, "other");
  fs::rename(directory_ / "other", directory_ / "model.safetensors");
  EXPECT_EQ(*(*source)->read_all("a.weight"), "abcdefgh");
}

TEST_F(Sources, KeepOnlyFilesOpenThatTheyRead) {
  const auto descriptors = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  fs::rename(directory_ / "model.safetensors", directory_ / "needed.safetensors");
  for (const char* other : {"one.safetensors", "two.safetensors"}) {
    write_tensors({{"extra", "F32", {1}, "ijkl"}}, other);
  }
  const auto before = descriptors();
  {
    const auto source = WeightSource::of_checkpoint(directory_, manifest_);
    ASSERT_TRUE(source) << source.error().message;
    EXPECT_EQ(descriptors(), before + 1);
  }
  EXPECT_EQ(descriptors(), before);
}

TEST_F(Sources, ServeSeveralThreads) {
  const auto source = WeightSource::of_checkpoint(directory_, manifest_);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int turn = 0; turn < 50; ++turn) EXPECT_EQ(*(*source)->read_all("a.weight"), "abcdefgh");
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(Sources, TakeOtherWeightsOfTheSameForm) {
  write_tensors(
      {{"extra", "BOOL", {3}, "xyz"}, {"b.weight", "F32", {1}, "1234"}, {"a.weight", "BF16", {2, 2}, "12345678"}});
  const auto source = WeightSource::of_checkpoint(directory_, manifest_);
  ASSERT_TRUE(source) << source.error().message;
  EXPECT_EQ(*(*source)->read_all("a.weight"), "12345678");
  EXPECT_FALSE((*source)->is_of_bundle());
}

TEST_F(Sources, FindTensorsThroughAnIndexAndLinks) {
  fs::create_directory(directory_ / "elsewhere");
  fs::remove(directory_ / "model.safetensors");
  write_tensors({tensors_[0]}, "elsewhere/blob");
  fs::create_symlink("elsewhere/blob", directory_ / "one.safetensors");
  write_tensors({tensors_[1]}, "two.safetensors");
  write_tensors({tensors_[1]}, "stale.safetensors");
  const Json map = {{"a.weight", "one.safetensors"}, {"b.weight", "two.safetensors"}, {"c", "none.safetensors"}};
  write("model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  const auto source = WeightSource::of_checkpoint(directory_, manifest_);
  ASSERT_TRUE(source) << source.error().message;
  EXPECT_EQ(*(*source)->read_all("a.weight"), "abcdefgh");
  for (const Json& place : {Json("../two.safetensors"), Json("two.bin"), Json(2), Json("/two.safetensors")}) {
    Json outside = map;
    outside["b.weight"] = place;
    write("model.safetensors.index.json", Json{{"weight_map", outside}}.dump());
    expect_refused({"model.safetensors.index.json places b.weight in"});
  }
  write("model.safetensors.index.json", R"({"weight_map": {"a.weight": "one.safetensors"}})");
  expect_refused({"has no tensor b.weight (float32 [1])"});
  write("model.safetensors.index.json", "{}");
  expect_refused({"has no weight_map"});
}

TEST_F(Sources, ReadEveryFileWhereThereIsNoIndex) {
  fs::remove(directory_ / "model.safetensors");
  write_tensors({tensors_[0]}, "one.safetensors");
  write_tensors({tensors_[1]}, "two.safetensors");
  EXPECT_EQ(refusal().message, "");
  write_tensors({tensors_[1]}, "three.safetensors");
  expect_refused({"tensor b.weight is in", "three.safetensors", "two.safetensors"});
}

TEST_F(Sources, AreRefusedIfTheyAreNoCheckpoint) {
  fs::remove(directory_ / "model.safetensors");
  expect_refused({"has no .safetensors file"}, ErrorCode::kWeightsMissing);
  fs::remove(directory_ / "config.json");
  expect_refused({"has no config.json"}, ErrorCode::kWeightsMissing);
  write("config.json", "[]");
  expect_refused({"config.json is not a JSON object"});
}

TEST_F(Sources, AreRefusedIfAnswersWithoutTheRestWouldBeWrong) {
  const auto with = [this](const char* name, std::string_view bytes) {
    auto tensors = tensors_;
    tensors.push_back({name, "F32", {1}, std::string(bytes)});
    write_tensors(tensors);
  };
  with("model.layers.0.self_attn.q_proj.bias", {"\0\0\0\1", 4});
  expect_refused({"model.safetensors holds model.layers.0.self_attn.q_proj.bias: this model has no biases"});
  with("a.lora_A.weight", {"\0\0\0\0", 4});
  expect_refused({"holds a.lora_A.weight, of an adapter that is not merged"});
  with("a.base_layer.weight", {"\0\0\0\0", 4});
  expect_refused({"holds a.base_layer.weight, of an adapter that is not merged"});
  with("model.layers.0.self_attn.q_proj.bias", {"\0\0\0\0", 4});
  EXPECT_EQ(refusal().message, "");
  with("score.bias", {"\0\0\0\1", 4});
  EXPECT_EQ(refusal().message, "");
  write("adapter_config.json", "{}");
  expect_refused({"holds a PEFT adapter (adapter_config.json)"});
}

TEST_F(Sources, AreRefusedWithAnotherConfiguration) {
  const std::pair<const char*, Json> changes[] = {
      {"/model_type", "minicpm"},   {"/hidden_size", 16},           {"/scale_depth", 1.4},
      {"/rms_norm_eps", 1e-5},      {"/rope_theta", 2e4},           {"/rope_parameters", {{"rope_theta", 2e4}}},
      {"/scale_emb", "12"},         {"/tie_word_embeddings", true}, {"/tie_word_embeddings", 0},
      {"/num_hidden_layers", 3},    {"/mixer_types", {"minicpm4"}}, {"/mixer_types", {"minicpm4", "minicpm4"}},
      {"/mixer_types", "minicpm4"}, {"/sparse_config/topk", 5},     {"/sparse_config/dense_len", 0},
  };
  for (const auto& [pointer, value] : changes) {
    Json other = config_;
    other[Json::json_pointer(pointer)] = value;
    write("config.json", other.dump());
    std::string name = pointer + 1;
    if (name == "rope_parameters") name += ".rope_theta";
    std::replace(name.begin(), name.end(), '/', '.');
    expect_refused({(name + " is ").c_str(), "this bundle was built for", "same configuration"});
  }
}

TEST_F(Sources, AreRefusedWithAConfigurationThatIsNestedDeeply) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  for (const std::string name : {"rope_theta", "mixer_types", "sparse_config"}) {
    Json config = config_;
    config.erase(name);
    write("config.json", config.dump().insert(1, "\"" + name + "\": " + deep + ","));
    expect_refused({"config.json is not a JSON object"});
  }
}

TEST_F(Sources, MayHaveMoreLayersThanABundleOfTheFirst) {
  config_["mixer_types"].push_back("minicpm4");
  config_["num_hidden_layers"] = 3;
  manifest_.model_config["residual_depth"] = 3;
  write("config.json", config_.dump());
  EXPECT_EQ(refusal().message, "");
}

TEST_F(Sources, MayLeaveOutWhatHasADefault) {
  config_.erase("rms_norm_eps");
  config_["rope_theta"] = nullptr;
  write("config.json", config_.dump());
  EXPECT_EQ(refusal().message, "");
  manifest_.model_config["rope_theta"] = 2e4;
  expect_refused({"rope_theta is 10000.0, this bundle was built for 20000.0"});
  config_["rope_parameters"] = {{"rope_theta", 2e4}};
  write("config.json", config_.dump());
  EXPECT_EQ(refusal().message, "");
}

TEST_F(Sources, AreRefusedWithoutWhatEveryConfigurationSays) {
  for (const char* name : {"model_type", "hidden_size", "num_hidden_layers", "mixer_types"}) {
    Json other = config_;
    other.erase(name);
    write("config.json", other.dump());
    expect_refused({(std::string(name) + " is missing").c_str()});
  }
  config_.erase("sparse_config");
  write("config.json", config_.dump());
  expect_refused({"sparse_config.topk is 64, this bundle was built for 4"});
}

TEST_F(Sources, AreRefusedWithTensorsOfAnotherForm) {
  write_tensors({tensors_[0]});
  expect_refused({"has no tensor b.weight (float32 [1]), which this bundle of precision bf16 needs"});
  write_tensors({{"a.weight", "F8_E4M3", {2, 4}, "abcdefgh"}, tensors_[1]});
  expect_refused({"model.safetensors: tensor a.weight is float8_e4m3fn [2, 4]", "was built for bfloat16 [2, 2]"});
  write_tensors({{"a.weight", "BF16", {4, 1}, "abcdefgh"}, tensors_[1]});
  expect_refused({"a.weight is bfloat16 [4, 1]"});
  write_tensors({tensors_[0], {"b.weight", "F32", {}, "ijkl"}});
  expect_refused({"b.weight is float32 []"});
  write_tensors({tensors_[0], {"b.weight", "F8_E5M2", {4}, "ijkl"}});
  expect_refused({"b.weight is F8_E5M2 [4]"});
}

TEST_F(Sources, MayHaveScalesForAllRowsOrForEach) {
  const std::string codes(8, 'x');
  manifest_.tensors.clear();
  store("model.safetensors", {{"codes", "I8", {4, 2}, codes}, {"scale", "F32", {1}, std::string(4, 's')}});
  manifest_.engine.weights = {{TensorSpec{"w", DType::kFloat32, {}}, {{.tensor = "scale", .rows = 4}}}};
  const std::pair<Shape, bool> shapes[] = {{{}, true},   {{1}, true},     {{4}, true},    {{4, 1}, true},
                                           {{2}, false}, {{1, 4}, false}, {{4, 4}, false}};
  for (const auto& [shape, is_taken] : shapes) {
    const auto bytes = static_cast<size_t>(4 * elements_of(shape));
    write_tensors({{"codes", "I8", {4, 2}, codes}, {"scale", "F32", shape, std::string(bytes, 's')}});
    EXPECT_EQ(refusal().message.empty(), is_taken) << to_string(shape);
  }
}

TEST_F(Sources, AreRefusedWhereFixedBytesDiffer) {
  manifest_.tensors.at("a.weight").fixed = true;
  EXPECT_EQ(refusal().message, "");
  write_tensors({{"a.weight", "BF16", {2, 2}, "abcdefgx"}, tensors_[1]});
  expect_refused({"tensor a.weight in", "this bundle's engine, which holds them as constants"});
}

TEST_F(Sources, TellOfFixedBytesWhileTheyAreCompared) {
  manifest_.tensors.at("a.weight").fixed = true;
  LoadOptions options;
  std::vector<std::pair<int64_t, int64_t>> told;
  options.on_progress = [&](int64_t done, int64_t total) {
    told.emplace_back(done, total);
    return true;
  };
  EXPECT_TRUE(WeightSource::of_checkpoint(directory_, manifest_, options));
  EXPECT_EQ(told.front(), std::pair(int64_t{0}, int64_t{8}));
  EXPECT_EQ(told.back(), std::pair(int64_t{8}, int64_t{8}));
  options.on_progress = [](int64_t, int64_t) { return false; };
  const auto stopped = WeightSource::of_checkpoint(directory_, manifest_, options);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kStopped);
}

TEST_F(Sources, AreRefusedWithFilesThatAreNone) {
  const std::string whole = safetensors(tensors_);
  const auto refused_with = [&](const std::string& content) {
    write("model.safetensors", content);
    expect_refused({"model.safetensors", "download the checkpoint again"});
  };
  refused_with("");
  refused_with("version https://git-lfs.github.com/spec/v1");
  refused_with(whole.substr(0, whole.size() - 1));
  refused_with(whole.substr(0, 40));
  refused_with(whole + "x");
  refused_with(std::string(8, '\0'));
  refused_with(std::string("\2\0\0\0\0\0\0\0[]", 10));
  fs::remove(directory_ / "model.safetensors");
  fs::create_directory(directory_ / "model.safetensors");
  expect_refused({"model.safetensors is not a file"});
  fs::remove(directory_ / "model.safetensors");
  ASSERT_EQ(mkfifo((directory_ / "model.safetensors").c_str(), 0600), 0);
  expect_refused({"model.safetensors is not a file"});
}

}  // namespace
}  // namespace sala::test
