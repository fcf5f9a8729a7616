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

/// A part in `file`, whose scales are in the file "scales".
WeightPart quantized(Codes codes, int64_t bytes, Dequantization how) {
  how.codes = codes;
  how.scale_file = "scales";
  return {"codes", 0, bytes, DType::kFloat32, how};
}

Dequantization blocks(int64_t columns, int64_t block_rows, int64_t block_columns, int64_t scale_bytes,
                      float global_scale = 1.0f) {
  return {Codes::kFp8, columns, "", 0, scale_bytes, block_rows, block_columns, global_scale};
}

TEST_F(Weights, OfFp8AreE4m3WithOneScale) {
  write("codes", bytes({0x38, 0xc0, 0x01, 0x7e, 0x08, 0x80}));  // 1, -2, 2^-9, 448, 2^-6, -0
  write("scales", bytes({0x00, 0x00, 0x00, 0x3f}));             // 0.5
  const auto weights =
      load({"w", DType::kFloat32, {{2, {}}, {3, {}}}}, {quantized(Codes::kFp8, 6, blocks(3, 1, 1, 4))});
  ASSERT_TRUE(weights) << weights.error().message;
  EXPECT_EQ(floats(weights->front()), (std::vector<float>{0.5f, -1.0f, 0x1p-10f, 224.0f, 0x1p-7f, 0.0f}));
}

TEST_F(Weights, OfInt8MayHaveAScalePerRowAndFollowPlainRows) {
  write("plain", bytes({0x80, 0x3f, 0x20, 0xc0}));                           // bf16 1.0, -2.5
  write("codes", bytes({1, 0x80, 0x7f, 0xff}));                              // 1, -128, 127, -1
  write("scales", bytes({0x00, 0x00, 0x00, 0x3f, 0x00, 0x00, 0x00, 0x40}));  // 0.5, 2
  const auto weights =
      load({"w", DType::kFloat32, {{3, {}}, {2, {}}}},
           {{"plain", 0, 4, DType::kBFloat16}, quantized(Codes::kInt8, 4, blocks(2, 2, 1, 8))});
  ASSERT_TRUE(weights) << weights.error().message;
  EXPECT_EQ(floats(weights->front()), (std::vector<float>{1.0f, -2.5f, 0.5f, -64.0f, 254.0f, -2.0f}));
}

TEST_F(Weights, OfInt4AreNibblesLowestFirstWithAScalePerGroup) {
  write("codes", bytes({0x10, 0x98, 0xf7, 0x8f}));   // -8, -7, 0, 1; -1, 7, 7, 0
  write("scales", bytes({0x80, 0x3f, 0x00, 0x40, 0x00, 0x3f, 0x80, 0x40}));  // bf16 1, 2, 0.5, 4
  const auto weights =
      load({"w", DType::kFloat32, {{2, {}}, {4, {}}}}, {quantized(Codes::kInt4, 4, blocks(4, 2, 2, 8))});
  ASSERT_TRUE(weights) << weights.error().message;
  EXPECT_EQ(floats(weights->front()), (std::vector<float>{-8.0f, -7.0f, 0.0f, 2.0f, -0.5f, 3.5f, 28.0f, 0.0f}));
}

TEST_F(Weights, OfNvfp4HaveAScalePerGroupAndOneOverThem) {
  write("codes", bytes({0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe}));
  write("scales", bytes({0x38, 0x40}));  // e4m3 1, 2
  const auto weights =
      load({"w", DType::kFloat32, {{1, {}}, {16, {}}}}, {quantized(Codes::kNvfp4, 8, blocks(16, 1, 2, 2, 0.5f))});
  ASSERT_TRUE(weights) << weights.error().message;
  EXPECT_EQ(floats(weights->front()),
            (std::vector<float>{0.0f, 0.25f, 0.5f, 0.75f, 1.0f, 1.5f, 2.0f, 3.0f, 0.0f, -0.5f, -1.0f, -1.5f, -2.0f,
                                -3.0f, -4.0f, -6.0f}));
}

TEST_F(Weights, AreDequantizedAcrossStagingBorders) {
  constexpr int64_t kColumns = 1000, kRows = (int64_t{4} << 20) / kColumns + 3;
  std::string codes, scales;
  for (int64_t row = 0; row < kRows; ++row) {
    codes += std::string(kColumns, static_cast<char>(row % 100));
    scales += bytes({0x00, 0x00, 0x00, row % 2 == 0 ? 0x3f : 0x40});  // 0.5, 2
  }
  write("codes", codes);
  write("scales", scales);
  const auto weights = load({"w", DType::kFloat32, {{kRows, {}}, {kColumns, {}}}},
                            {quantized(Codes::kInt8, kRows * kColumns, blocks(kColumns, kRows, 1, 4 * kRows))});
  ASSERT_TRUE(weights) << weights.error().message;
  const auto values = floats(weights->front());
  for (int64_t row = 0; row < kRows; ++row) {
    EXPECT_EQ(values[static_cast<size_t>(row * kColumns + row % kColumns)],
              static_cast<float>(row % 100) * (row % 2 == 0 ? 0.5f : 2.0f));
  }
}

TEST_F(Weights, RefuseCodesAndScalesThatDoNotFitTogether) {
  write("codes", std::string(8, '\0'));
  write("scales", std::string(8, '\0'));
  const auto code = [&](int64_t bytes, Dequantization how, Codes codes = Codes::kFp8, DType dtype = DType::kFloat32) {
    const auto weights = load({"w", dtype, {{2, {}}, {4, {}}}}, {quantized(codes, bytes, std::move(how))});
    return weights ? ErrorCode{} : weights.error().code;
  };
  EXPECT_EQ(code(8, blocks(4, 2, 1, 8)), ErrorCode{});
  EXPECT_EQ(code(8, blocks(4, 2, 1, 8), Codes::kFp8, DType::kBFloat16), ErrorCode::kBundleDamaged);
  EXPECT_EQ(code(7, blocks(4, 1, 1, 4)), ErrorCode::kBundleDamaged) << "no whole row";
  EXPECT_EQ(code(8, blocks(4, 2, 1, 4)), ErrorCode::kBundleDamaged) << "too few scales";
  EXPECT_EQ(code(8, blocks(4, 1, 3, 12)), ErrorCode::kBundleDamaged) << "blocks do not divide a row";
  EXPECT_EQ(code(4, blocks(3, 1, 1, 2), Codes::kInt4), ErrorCode::kBundleDamaged) << "half a byte to a row";
  EXPECT_EQ(code(8, blocks(4, 1, 1, 1), Codes::kNvfp4), ErrorCode::kBundleDamaged) << "twice the elements";
  EXPECT_EQ(code(16, blocks(8, 1, 1, 4)), ErrorCode::kBundleDamaged) << "the file ends before";
}

}  // namespace
}  // namespace sala::test
