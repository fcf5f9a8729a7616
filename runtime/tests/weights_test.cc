#include "weights.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace sala::test {
namespace {

namespace fs = std::filesystem;

class Weights : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / "weights";
    fs::create_directories(directory_);
  }

  void write(const char* name, const std::string& bytes) {
    std::ofstream(directory_ / name, std::ios::binary) << bytes;
  }

  Expected<std::vector<Weight>> load(TensorSpec spec, std::vector<WeightPart> parts) {
    Manifest manifest;
    manifest.cpu.weights = {{std::move(spec), std::move(parts)}};
    return load_weights(directory_, manifest);
  }

  static std::string bytes(std::initializer_list<int> values) { return {values.begin(), values.end()}; }

  fs::path directory_;
};

std::vector<float> floats(const Weight& weight) {
  const float* data = static_cast<const float*>(weight.buffer.data());
  return {data, data + elements_of(weight.shape)};
}

TEST_F(Weights, ArePackedFromPartsOfSeveralTypesAndFiles) {
  write("a", bytes({0x77, 0x80, 0x3f, 0x20, 0xc0}));        // one byte off: bf16 1.0, -2.5
  write("b", bytes({0x00, 0x3c, 0x01, 0x00, 0xff, 0xfb}));  // fp16 1.0, 2^-24, -65504
  write("c", bytes({0x00, 0x00, 0x20, 0x41}));              // fp32 10.0
  const auto weights =
      load({"w", DType::kFloat32, {{3, {}}, {2, {}}}},
           {{"a", 1, 4, DType::kBFloat16}, {"b", 0, 6, DType::kFloat16}, {"c", 0, 4, DType::kFloat32}});
  ASSERT_TRUE(weights) << weights.error().message;
  EXPECT_EQ(floats(weights->front()), (std::vector<float>{1.0f, -2.5f, 1.0f, 0x1p-24f, -65504.0f, 10.0f}));
}

TEST_F(Weights, KeepAStoredTypeThatTheGraphTakes) {
  write("a", bytes({0x80, 0x3f, 0x20, 0xc0}));
  const auto weights = load({"w", DType::kBFloat16, {{2, {}}}}, {{"a", 0, 4, DType::kBFloat16}});
  ASSERT_TRUE(weights);
  EXPECT_EQ(static_cast<const uint16_t*>(weights->front().buffer.data())[1], 0xc020);
}

TEST_F(Weights, AreConvertedAcrossStagingBorders) {
  constexpr int64_t kCount = (int64_t{4} << 20) / 2 + 3;
  std::string data;
  for (int64_t i = 0; i < kCount; ++i) data += {'\0', static_cast<char>(i % 64)};
  write("a", data);
  const auto weights = load({"w", DType::kFloat32, {{kCount, {}}}}, {{"a", 0, 2 * kCount, DType::kBFloat16}});
  ASSERT_TRUE(weights);
  const auto values = floats(weights->front());
  for (int64_t i = 0; i < kCount; i += 1021) {
    EXPECT_EQ(values[static_cast<size_t>(i)], values[static_cast<size_t>(i % 64)]);
  }
  EXPECT_EQ(values.back(), values[static_cast<size_t>((kCount - 1) % 64)]);
}

TEST_F(Weights, RefusePartsThatDoNotFillTheShape) {
  write("a", std::string(8, '\0'));
  const auto code = [&](std::vector<WeightPart> parts) {
    const auto weights = load({"w", DType::kFloat32, {{3, {}}}}, std::move(parts));
    return weights ? ErrorCode{} : weights.error().code;
  };
  EXPECT_EQ(code({{"a", 0, 4, DType::kBFloat16}}), ErrorCode::kBundleDamaged);
  EXPECT_EQ(code({{"a", 0, 8, DType::kBFloat16}}), ErrorCode::kBundleDamaged);
  EXPECT_EQ(code({{"a", 0, 5, DType::kBFloat16}}), ErrorCode::kBundleDamaged);
  EXPECT_EQ(code({{"a", 0, 12, DType::kInt32}}), ErrorCode::kBundleDamaged);
  EXPECT_EQ(code({{"a", 0, 12, DType::kFloat32}}), ErrorCode::kBundleDamaged) << "the file ends before";
  EXPECT_EQ(code({{"a", 0, 6, DType::kBFloat16}}), ErrorCode{});
}

}  // namespace
}  // namespace sala::test
