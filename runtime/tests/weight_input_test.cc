// Inputs made from tensors in every form, taken whole and in pieces.

#include "weights/weight_input.h"

#include <gtest/gtest.h>

#include <numeric>

#include "checkpoint_files.h"
#include "weights/weights.h"

namespace sala::test {
namespace {

TensorSpec spec(DType dtype, const Shape& shape) {
  TensorSpec result{"w", dtype, {}};
  for (const int64_t extent : shape) result.shape.push_back({extent, {}});
  return result;
}

WeightInput words_of(const Shape& shape, std::vector<WeightPart> parts, DType dtype = DType::kInt32) {
  return {spec(dtype, shape), std::move(parts), /*is_word_columns=*/true};
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

TEST_F(WeightInputs, OfWordColumnsHaveTheWordsOfOnePlaceOfAllRowsSideBySide) {
  store("a.safetensors", {{"a", "U8", {2, 8}, "abcdefghABCDEFGH"}, {"b", "U8", {1, 8}, "12345678"}});
  EXPECT_EQ(*read(words_of({2, 3}, {{"a"}, {"b"}})), "abcdABCD1234efghEFGH5678");
  EXPECT_EQ(*read(words_of({2, 3}, {{"b"}, {"a"}})), "1234abcdABCD5678efghEFGH");
}

TEST_F(WeightInputs, OfWordColumnsAreTheSameInPieces) {
  const std::vector<int64_t> rows{1, 7, 40};
  for (const int64_t columns : {1, 3}) {
    std::vector<FileTensor> tensors{{"odd", "U8", {1}, "x"}};  // puts the others at odd offsets
    for (const int64_t count : rows) {
      std::string data;
      for (int64_t i = 0; i < count * columns * 4; ++i) data += static_cast<char>((i * 7 + count) % 251);
      tensors.push_back({"rows" + std::to_string(count), "U8", {count, 4 * columns}, data});
    }
    store("a.safetensors", tensors);
    for (size_t parts = 1; parts <= rows.size(); ++parts) {
      std::vector<WeightPart> named;
      std::string expected;
      for (size_t i = 1; i <= parts; ++i) named.push_back({tensors[i].name});
      for (int64_t place = 0; place < columns; ++place) {
        for (size_t i = 1; i <= parts; ++i) {
          for (int64_t row = 0; row < rows[i - 1]; ++row) {
            expected += tensors[i].data.substr(static_cast<size_t>(4 * (row * columns + place)), 4);
          }
        }
      }
      const int64_t together = std::accumulate(rows.begin(), rows.begin() + static_cast<int64_t>(parts), int64_t{0});
      // A few words, and 27 bytes are no number of them.
      for (const int64_t room : {int64_t{1} << 20, int64_t{16}, int64_t{27}}) {
        const auto content = read(words_of({columns, together}, named), room);
        ASSERT_TRUE(content) << content.error().message;
        EXPECT_EQ(*content, expected) << columns << " columns, " << parts << " parts, room " << room;
      }
    }
  }
}

TEST_F(WeightInputs, OfWordColumnsAreRefusedWhereTheirTensorsAreOthers) {
  store("a.safetensors", {{"a", "U8", {7, 12}, std::string(84, 'a')},
                          {"flat", "U8", {84}, std::string(84, 'a')},
                          {"narrow", "U8", {7, 8}, std::string(56, 'a')},
                          {"odd", "U8", {7, 13}, std::string(91, 'a')},
                          {"signed", "I8", {7, 12}, std::string(84, 'a')},
                          {"words", "I32", {3, 7}, std::string(84, 'a')}});
  EXPECT_TRUE(read(words_of({3, 7}, {{"a"}})));
  EXPECT_TRUE(read(words_of({3, 14}, {{"a"}, {"a"}})));
  const std::pair<WeightInput, const char*> refused[] = {
      {words_of({3, 7}, {{"flat"}}), "of uint8 [7, 12], of which flat cannot be rows: it is uint8 [84]"},
      {words_of({3, 7}, {{"narrow"}}), "narrow cannot be rows: it is uint8 [7, 8]"},
      {words_of({3, 7}, {{"odd"}}), "odd cannot be rows: it is uint8 [7, 13]"},
      {words_of({3, 7}, {{"signed"}}), "signed cannot be rows: it is int8 [7, 12]"},
      {words_of({3, 7}, {{"words"}}), "words cannot be rows: it is int32 [3, 7]"},
      {words_of({3, 14}, {{"a"}, {"narrow"}}), "narrow cannot be rows"},
      {words_of({3, 6}, {{"a"}}), "a cannot be rows: it is uint8 [7, 12]"},
      {words_of({3, 7}, {{"a"}, {"a"}}), "a cannot be rows"},
      {words_of({3, 8}, {{"a"}}), "has word columns of 8 rows, its tensors lack 1"},
      {words_of({3, 7}, {scales_of("a", 7)}), "it is uint8 [7, 12], as scales of rows"},
      {words_of({21}, {{"a"}}), "is int32 [21], word columns are an int32 matrix"},
      {words_of({1, 3, 7}, {{"a"}}), "is int32 [1, 3, 7], word columns"},
      {words_of({3, 7}, {{"a"}}, DType::kFloat32), "is float32 [3, 7], word columns"},
  };
  for (const auto& [input, words] : refused) {
    const auto content = read(input);
    ASSERT_FALSE(content) << words;
    EXPECT_EQ(content.error().code, ErrorCode::kBundleDamaged);
    EXPECT_NE(content.error().message.find(words), std::string::npos) << content.error().message;
  }
  EXPECT_EQ(code({spec(DType::kInt32, {3, 7}), {{"a"}}}), ErrorCode::kBundleDamaged) << "bytes are no int32";
}

TEST_F(WeightInputs, OfWordColumnsAreRefusedWhereTheyWouldFillTheMemory) {
  store("a.safetensors", {{"a", "U8", {1, 4}, "abcd"}});
  constexpr int64_t kRows = (int64_t{32} << 20) + 1;
  manifest_.tensors.at("a").shape = {kRows, 4};
  EXPECT_EQ(code(words_of({1, kRows}, {{"a"}})), ErrorCode::kBundleDamaged);
}

TEST_F(WeightInputs, OfWordColumnsNameATensorThatIsDamagedOrCutShort) {
  store("a.safetensors", {{"a", "U8", {1, 4}, "abcd"}, {"b", "U8", {1, 4}, "efgh"}});
  const WeightInput input = words_of({1, 2}, {{"a"}, {"b"}});
  const auto refusal = [&] {
    const auto content = read(input);
    EXPECT_FALSE(content);
    EXPECT_EQ(content.error().code, ErrorCode::kBundleDamaged);
    return content.error().message;
  };
  manifest_.tensors.at("b").sha256 = sha256(std::string("efgi"));
  EXPECT_NE(refusal().find("tensor b in"), std::string::npos);
  std::filesystem::resize_file(directory_ / "a.safetensors",
                               static_cast<uintmax_t>(manifest_.tensors.at("b").offset + 3));
  EXPECT_NE(refusal().find("tensor b: "), std::string::npos) << refusal();
}

TEST_F(WeightInputs, AreTheirTensorAsItIsWhereItIsStoredAlike) {
  store("a.safetensors", {{"a", "U8", {1, 4}, "abcd"}, {"b", "F8_E4M3", {1, 4}, "efgh"}});
  const auto from = source();
  const auto alike = [&](const WeightInput& input) { return tensor_as_it_is(input, *from); };
  EXPECT_EQ(alike({spec(DType::kUInt8, {1, 4}), {{"a"}}}), &from->tensor("a"));
  EXPECT_EQ(alike({spec(DType::kFloat8E4M3FN, {1, 4}), {{"b"}}}), &from->tensor("b"));
  EXPECT_EQ(alike(words_of({1, 1}, {{"a"}})), nullptr);
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
