// Weights of the CPU graphs, mapped and read.

#include "weights/weights.h"

#include <gtest/gtest.h>

#include "checkpoint_files.h"

namespace sala::test {
namespace {

constexpr int64_t kMebibyte = int64_t{1} << 20;

class CpuWeights : public CheckpointTest {
 protected:
  static WeightInput input(const std::string& name, DType dtype, const Shape& shape,
                           const std::vector<WeightPart>& parts) {
    WeightInput result{{name, dtype, {}}, parts};
    for (const int64_t extent : shape) result.spec.shape.push_back({extent, {}});
    return result;
  }

  static std::string pattern(int64_t bytes) {
    std::string result;
    for (int64_t i = 0; i < bytes; ++i) result += static_cast<char>(i % 251);
    return result;
  }

  /// A weight just below 1 MiB and one just above, each as it is stored, and the second in fp32.
  void store_weights() {
    small_ = pattern(kMebibyte - 1);
    large_ = pattern(kMebibyte + 2);
    const int64_t elements = kMebibyte / 2 + 1;
    store("a.safetensors", {{"small", "U8", {kMebibyte - 1}, small_}, {"large", "BF16", {elements}, large_}});
    manifest_.precision = "bf16";
    manifest_.cpu.weights = {input("small", DType::kUInt8, {kMebibyte - 1}, {{"small"}}),
                             input("large", DType::kBFloat16, {elements}, {{"large"}}),
                             input("converted", DType::kFloat32, {elements}, {{"large"}})};
  }

  Expected<Weights> load(const LoadOptions& options = {}, std::optional<int64_t> memory = std::nullopt) const {
    const auto source = WeightSource::of_bundle(bundle());
    EXPECT_TRUE(source) << source.error().message;
    return load_weights(manifest_, **source, options, memory);
  }

  static std::string bytes_of(const Weight& weight, int64_t bytes) {
    return {static_cast<const char*>(weight.data), static_cast<size_t>(bytes)};
  }

  std::string small_, large_;
};

TEST_F(CpuWeights, AreMappedFromAMebibyteOnIfTheyAreTakenAsTheyAre) {
  store_weights();
  std::pair<int64_t, int64_t> told;
  LoadOptions options;
  options.on_progress = [&](int64_t done, int64_t total) {
    told = {done, total};
    return true;
  };
  const auto weights = load(options);
  ASSERT_TRUE(weights) << weights.error().message;
  const auto& all = weights->all();
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].buffer.bytes(), kMebibyte - 1);
  EXPECT_EQ(all[1].buffer.bytes(), 0) << "no copy";
  EXPECT_EQ(all[2].buffer.bytes(), 2 * kMebibyte + 4);
  EXPECT_EQ(bytes_of(all[0], kMebibyte - 1), small_);
  EXPECT_EQ(bytes_of(all[1], kMebibyte + 2), large_);
  EXPECT_EQ(bytes_of(all[2], 4), std::string(2, '\0') + large_.substr(0, 2));
  EXPECT_EQ(told.first, told.second);
  EXPECT_EQ(told.second, 4 * kMebibyte + 5);
  EXPECT_TRUE(weights->check());
}

TEST_F(CpuWeights, AreComparedWithTheirHashesThoughTheyAreMapped) {
  store_weights();
  manifest_.tensors.at("large").sha256 = sha256(small_);
  const auto weights = load();
  ASSERT_FALSE(weights);
  EXPECT_EQ(weights.error().code, ErrorCode::kBundleDamaged);
  EXPECT_NE(weights.error().message.find("tensor large in"), std::string::npos) << weights.error().message;
}

TEST_F(CpuWeights, SurviveTheirSourceAndSayWhenTheirFileIsCutShort) {
  store_weights();
  const auto weights = load();
  ASSERT_TRUE(weights);
  std::filesystem::resize_file(directory_ / "a.safetensors", 4096);
  EXPECT_EQ(static_cast<const volatile char*>(weights->all()[1].data)[kMebibyte - 1], 0);
  for (int turn = 0; turn < 2; ++turn) {
    const Status checked = weights->check();
    ASSERT_FALSE(checked);
    EXPECT_EQ(checked.error().code, ErrorCode::kBundleDamaged);
    EXPECT_NE(checked.error().message.find("a.safetensors was cut short while it was mapped"), std::string::npos);
  }
}

TEST_F(CpuWeights, AreRefusedIfTheyExceedTheMemory) {
  constexpr int64_t kGigabyte = 1'000'000'000;
  store("a.safetensors", {{"one", "F32", {1}, std::string(4, '\0')}});
  const auto refusal = [&](const char* precision, int64_t memory) {
    manifest_.precision = precision;
    const WeightPart part{.tensor = "one", .rows = 4 * kGigabyte};
    manifest_.cpu.weights = {input("model.layers.0.mlp.up_proj.weight", DType::kFloat32, {4 * kGigabyte}, {part}),
                             input("lm_head.weight", DType::kFloat32, {kGigabyte / 4}, {{"one", kGigabyte / 4}})};
    const auto weights = load({}, memory);
    EXPECT_EQ(weights.error().code, ErrorCode::kOutOfMemory);
    return weights.error().message;
  };
  const std::string begin =
      "the weights of this bundle take 17.0 GB of memory on the CPU, this machine or its control group has ";
  const std::string end = "run it on a machine with more memory";
  EXPECT_EQ(refusal("bf16", 12 * kGigabyte),
            begin + "12.0 GB: fp8 would take about 9.0 GB, so build the bundle with --precision fp8, or " + end);
  EXPECT_EQ(refusal("bf16", 8 * kGigabyte),
            begin + "8.0 GB: int4 would take about 5.1 GB, so build the bundle with --precision int4, or " + end);
  EXPECT_EQ(refusal("bf16", 5 * kGigabyte), begin + "5.0 GB: " + end);
  EXPECT_EQ(refusal("mxfp8", 10 * kGigabyte),
            begin + "10.0 GB: int4 would take about 9.0 GB, so build the bundle with --precision int4, or " + end);
  EXPECT_EQ(refusal("int8", 16 * kGigabyte),
            begin + "16.0 GB: int4 would take about 9.3 GB, so build the bundle with --precision int4, or " + end);
  EXPECT_EQ(refusal("int4", 16 * kGigabyte), begin + "16.0 GB: " + end);
}

}  // namespace
}  // namespace sala::test
