// Inputs made from tensors in every form, taken whole and in pieces.

#include "weights/weight_input.h"

#include <gtest/gtest.h>

#include "checkpoint_files.h"
#include "weights/weights.h"

namespace sala::test {
namespace {

TensorSpec spec(DType dtype, const Shape& shape) {
  TensorSpec result{"w", dtype, {}};
  for (const int64_t extent : shape) result.shape.push_back({extent, {}});
  return result;
}

WeightPart scales_of(std::string tensor, int64_t rows, std::string factor = {}) {
  return {.tensor = std::move(tensor), .rows = rows, .factor = std::move(factor)};
}

class WeightInputs : public CheckpointTest {
 protected:
  std::unique_ptr<WeightSource> source() const {
    auto opened = WeightSource::of_bundle(bundle());
    EXPECT_TRUE(opened) << opened.error().message;
    return *std::move(opened);
  }

  /// The bytes of an input, `room` of them at a time.
  Expected<std::string> read(const WeightInput& input, int64_t room = int64_t{1} << 40) const {
    const auto from = source();
    const auto total = check_input(input, *from);
    if (!total) return total.error();
    std::string result(static_cast<size_t>(*total), '\0');
    InputReader reader(input, *from);
    for (int64_t done = 0;;) {
      const auto count = reader.next(result.data() + done, std::min(room, *total - done));
      if (!count) return count.error();
      if (*count == 0) {
        EXPECT_EQ(done, *total);
        return result;
      }
      done += *count;
    }
  }

  std::vector<float> floats(const WeightInput& input, int64_t room = int64_t{1} << 40) const {
    const auto content = read(input, room);
    EXPECT_TRUE(content) << content.error().message;
    if (!content) return {};
    std::vector<float> result(content->size() / sizeof(float));
    std::memcpy(result.data(), content->data(), content->size());
    return result;
  }

  ErrorCode code(const WeightInput& input) const {
    const auto content = read(input);
    return content ? ErrorCode{} : content.error().code;
  }
};

TEST_F(WeightInputs, ArePackedFromPartsOfSeveralTypesAndFiles) {
  // A name of odd length puts the data at an odd offset.
  store("a.safetensors", {{"odd", "U8", {1}, "x"}, {"a", "BF16", {2}, bytes({0x80, 0x3f, 0x20, 0xc0})}});
  store("b.safetensors", {{"b", "F16", {3}, bytes({0x00, 0x3c, 0x01, 0x00, 0xff, 0xfb})},
                          {"c", "F32", {1}, bytes({0x00, 0x00, 0x20, 0x41})}});
  const WeightInput input{spec(DType::kFloat32, {3, 2}), {{"a"}, {"b"}, {"c"}}};
  const std::vector<float> expected{1.0f, -2.5f, 1.0f, 0x1p-24f, -65504.0f, 10.0f};
  for (const int64_t room : {16, 20, 1 << 20}) EXPECT_EQ(floats(input, room), expected) << room;
}

TEST_F(WeightInputs, ConvertToNarrowTypes) {
  store("a.safetensors",
        {{"a", "BF16", {2}, bytes({0x80, 0x3f, 0x20, 0xc0})}, {"b", "F32", {1}, bytes({0x00, 0x00, 0x20, 0x41})}});
  EXPECT_EQ(*read({spec(DType::kFloat16, {3}), {{"a"}, {"b"}}}), bytes({0x00, 0x3c, 0x00, 0xc1, 0x00, 0x49}));
  EXPECT_EQ(*read({spec(DType::kBFloat16, {3}), {{"a"}, {"b"}}}), bytes({0x80, 0x3f, 0x20, 0xc0, 0x20, 0x41}));
}

TEST_F(WeightInputs, OfCodesAreTheStoredBytes) {
  store("a.safetensors", {{"a", "U8", {2, 2}, "abcd"}, {"b", "I32", {1}, "efgh"}});
  EXPECT_EQ(*read({spec(DType::kFloat8E4M3FN, {8}), {{"a"}, {"b"}}}), "abcdefgh");
  EXPECT_EQ(*read({spec(DType::kInt8, {2, 4}), {{"a"}, {"b"}}}), "abcdefgh");
  EXPECT_EQ(*read({spec(DType::kFloat4E2M1FN, {2, 8}), {{"a"}, {"b"}}}), "abcdefgh");
  EXPECT_EQ(code({spec(DType::kFloat4E2M1FN, {8}), {{"a"}, {"b"}}}), ErrorCode::kBundleDamaged);
}

TEST_F(WeightInputs, AreConvertedAcrossBordersOfBlocks) {
  constexpr int64_t kCount = (int64_t{3} << 20) / 2 + 3;
  std::string data;
  for (int64_t i = 0; i < kCount; ++i) data += {'\0', static_cast<char>(i % 61)};
  store("a.safetensors", {{"a", "BF16", {kCount}, data}});
  const auto values = floats({spec(DType::kFloat32, {kCount}), {{"a"}}}, 1'000'000);
  ASSERT_EQ(values.size(), static_cast<size_t>(kCount));
  for (int64_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(values[static_cast<size_t>(i)]), static_cast<uint32_t>(i % 61) << 24) << i;
  }
}

TEST_F(WeightInputs, OfScalesRepeatASingleNumberAndTakeAFactor) {
  store("a.safetensors", {{"one", "F32", {}, bytes_of_values<float>({0.1f})},
                          {"rows", "F32", {3, 1}, bytes_of_values<float>({1.0f, 2.0f, 0.3f})},
                          {"factor", "F32", {1}, bytes_of_values<float>({0.7f})}});
  const WeightInput input{spec(DType::kFloat32, {7}),
                          {scales_of("one", 2, "factor"), scales_of("rows", 3, "factor"), scales_of("one", 2)}};
  const std::vector<float> expected{0.1f * 0.7f, 0.1f * 0.7f, 0.7f, 2.0f * 0.7f, 0.3f * 0.7f, 0.1f, 0.1f};
  EXPECT_EQ(floats(input), expected);
  EXPECT_EQ(floats(input, 16), expected);
}

TEST_F(WeightInputs, OfOneNumberAreToldByEachPart) {
  store("a.safetensors", {{"a", "F32", {}, bytes_of_values<float>({0.25f})},
                          {"b", "F32", {1}, bytes_of_values<float>({0.25f})},
                          {"c", "F32", {1}, bytes_of_values<float>({0.5f})},
                          {"d", "F32", {2}, bytes_of_values<float>({0.25f, 0.25f})}});
  EXPECT_EQ(floats({spec(DType::kFloat32, {1}), {{"a"}, {"b"}, scales_of("a", 1)}}), (std::vector<float>{0.25f}));
  EXPECT_EQ(floats({spec(DType::kFloat32, {1}), {{"a"}}}), (std::vector<float>{0.25f}));
  const auto differing = read({spec(DType::kFloat32, {1}), {{"a"}, {"c"}}});
  ASSERT_FALSE(differing);
  EXPECT_EQ(differing.error().code, ErrorCode::kBundleDamaged);
  EXPECT_NE(differing.error().message.find("a gives 0.25 and c 0.5 for w"), std::string::npos)
      << differing.error().message;
  EXPECT_EQ(code({spec(DType::kFloat32, {1}), {{"a"}, {"d"}}}), ErrorCode::kBundleDamaged);
}

TEST_F(WeightInputs, AreRefusedWherePartsDoNotFillTheShape) {
  store("a.safetensors", {{"a", "F32", {2}, std::string(8, '\0')},
                          {"b", "BF16", {3}, std::string(6, '\0')},
                          {"c", "I32", {3}, std::string(12, '\0')}});
  const auto of = [&](std::vector<WeightPart> parts, DType dtype = DType::kFloat32) {
    return code({spec(dtype, {3}), std::move(parts)});
  };
  EXPECT_EQ(of({{"b"}}), ErrorCode{});
  EXPECT_EQ(of({{"a"}}), ErrorCode::kBundleDamaged);
  EXPECT_EQ(of({{"a"}, {"b"}}), ErrorCode::kBundleDamaged);
  EXPECT_EQ(of({}), ErrorCode::kBundleDamaged);
  EXPECT_EQ(of({{"c"}}), ErrorCode::kBundleDamaged) << "integers are not converted";
  EXPECT_EQ(of({{"c"}}, DType::kInt32), ErrorCode{});
  EXPECT_EQ(of({scales_of("b", 3)}), ErrorCode{});
  EXPECT_EQ(of({scales_of("b", 3)}, DType::kFloat16), ErrorCode::kBundleDamaged);
  EXPECT_EQ(of({scales_of("a", 3)}), ErrorCode::kBundleDamaged) << "two scales for three rows";
  EXPECT_EQ(of({scales_of("b", 3, "a")}), ErrorCode::kBundleDamaged) << "a factor of two numbers";
  EXPECT_EQ(of({scales_of("c", 3)}), ErrorCode::kBundleDamaged);
  TensorSpec symbolic = spec(DType::kFloat32, {3});
  symbolic.shape[0].symbol = "tokens";
  EXPECT_EQ(code({symbolic, {{"b"}}}), ErrorCode::kBundleDamaged);
  EXPECT_EQ(code({spec(DType::kFloat32, {INT64_MAX, 2}), {{"b"}}}), ErrorCode::kBundleDamaged);
}

TEST_F(WeightInputs, AreRefusedWhereScalesWouldFillTheMemory) {
  store("a.safetensors", {{"scales", "F32", {}, std::string(4, '\0')}});
  manifest_.tensors.at("scales").bytes = (int64_t{128} << 20) + 4;
  EXPECT_EQ(code({spec(DType::kFloat32, {3}), {scales_of("scales", 3)}}), ErrorCode::kBundleDamaged);
}

TEST_F(WeightInputs, AreRefusedTogetherWhereTheyExceedEveryMemory) {
  store("a.safetensors", {{"one", "F32", {}, std::string(4, '\0')}});
  const auto of = [&](int64_t rows) { return WeightInput{spec(DType::kFloat32, {rows}), {scales_of("one", rows)}}; };
  const auto from = source();
  EXPECT_EQ(*check_inputs(std::vector{of(5), of(3)}, *from), 32);
  for (const auto& [first, second] : {std::pair(INT64_MAX / 4, 1l), {1l, INT64_MAX / 4}, {1l << 46, 1l}}) {
    const auto total = check_inputs(std::vector{of(first), of(second)}, *from);
    ASSERT_FALSE(total);
    EXPECT_NE(total.error().message.find("is larger than memory"), std::string::npos);
  }
}

TEST_F(WeightInputs, AreLoadedTogetherWithProgress) {
  store("a.safetensors",
        {{"a", "BF16", {2}, bytes({0x80, 0x3f, 0x20, 0xc0})}, {"b", "F32", {1}, bytes({0x00, 0x00, 0x20, 0x41})}});
  manifest_.cpu.weights = {{spec(DType::kFloat32, {2}), {{"a"}}}, {spec(DType::kFloat32, {2}), {{"b"}, {"b"}}}};
  LoadOptions options;
  std::pair<int64_t, int64_t> told;
  options.on_progress = [&](int64_t done, int64_t total) {
    told = {done, total};
    return true;
  };
  const auto from = source();
  const auto weights = load_weights(manifest_, *from, options);
  ASSERT_TRUE(weights) << weights.error().message;
  ASSERT_EQ(weights->all().size(), 2u);
  EXPECT_EQ(static_cast<const float*>(weights->all()[0].data)[1], -2.5f);
  EXPECT_EQ(static_cast<const float*>(weights->all()[1].data)[1], 10.0f);
  EXPECT_EQ(told, std::pair(int64_t{16}, int64_t{16}));
  options.on_progress = [](int64_t, int64_t) { return false; };
  const auto stopped = load_weights(manifest_, *from, options);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kStopped);
}

TEST_F(WeightInputs, AreRefusedTogetherWhereOneIsDamaged) {
  store("a.safetensors", {{"a", "F32", {1}, "abcd"}, {"b", "F32", {1}, "efgh"}});
  manifest_.tensors.at("b").sha256 = sha256(std::string("efgi"));
  manifest_.cpu.weights = {{spec(DType::kFloat32, {1}), {{"a"}}}, {spec(DType::kBFloat16, {1}), {{"b"}}}};
  const auto weights = load_weights(manifest_, *source(), {});
  ASSERT_FALSE(weights);
  EXPECT_EQ(weights.error().code, ErrorCode::kBundleDamaged);
  EXPECT_NE(weights.error().message.find("tensor b in"), std::string::npos) << weights.error().message;
}

}  // namespace
}  // namespace sala::test
