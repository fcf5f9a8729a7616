// Sessions on disk: what is refused, and what a failure leaves behind.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "mock_engine.h"
#include "sala/state_target.h"
#include "state_hash.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;

class StateFile : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    path_ = directory_ / "a.state";
    Session session = mock_.session(64, 16);
    ASSERT_TRUE(session.prefill(prompt(21)));
    ASSERT_TRUE(session.save(path_));
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string text() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }

  /// Rewrites the file with a changed header, and the hash of that.
  void change_header(const std::function<void(nlohmann::json&)>& change) const {
    const std::string whole = text();
    auto header = nlohmann::json::parse(whole.substr(8, header_bytes(whole)));
    change(header);
    const std::string changed = header.dump();
    const uint64_t length = changed.size();
    write(with_hash(std::string(reinterpret_cast<const char*>(&length), sizeof length) + changed +
                    whole.substr(8 + header_bytes(whole))));
  }

  static uint64_t header_bytes(const std::string& whole) {
    uint64_t length = 0;
    std::memcpy(&length, whole.data(), sizeof length);
    return length;
  }

  /// Restores, expecting a refusal before any allocation.
  ErrorCode refusal(const Mock& mock, const SessionOptions& options = {}) const {
    const int64_t allocations = mock.engine->memory_.allocations_;
    const auto restored = mock.model.restore(path_, options);
    EXPECT_EQ(mock.engine->memory_.allocations_, allocations);
    return restored ? ErrorCode{} : restored.error().code;
  }
  ErrorCode refusal() const { return refusal(mock_); }

  size_t files() const { return static_cast<size_t>(std::distance(fs::directory_iterator(directory_), {})); }

  Mock mock_;
  fs::path directory_;
  fs::path path_;
};

TEST_F(StateFile, RestoresPositionTokensAndLogits) {
  Session session = mock_.session(64, 16);
  ASSERT_TRUE(session.prefill(prompt(21)));
  const auto restored = mock_.model.restore(path_);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_EQ(restored->position(), 21);
  EXPECT_TRUE(std::equal(restored->tokens().begin(), restored->tokens().end(), prompt(21).begin()));
  EXPECT_EQ(values(restored->logits()), values(session.logits()));
}

TEST_F(StateFile, RestoresAnEmptySession) {
  const Session session = mock_.session();
  ASSERT_TRUE(session.save(path_));
  auto restored = mock_.model.restore(path_);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_EQ(restored->position(), 0);
  EXPECT_TRUE(restored->prefill(prompt(3)));
}

TEST_F(StateFile, FitsTheSmallestCapacityAndNoSmaller) {
  EXPECT_TRUE(mock_.model.restore(path_, {.max_context = 21, .chunk_tokens = {}}));
  EXPECT_EQ(refusal(mock_, {.max_context = 20, .chunk_tokens = {}}), ErrorCode::kContextExceeded);
}

TEST_F(StateFile, HoldsValidRowsOnly) {
  // 21 ids, 50 logits, 2 states, and per head and channel: 21 keys, 21 values, 9 k1, 1 k2.
  const int64_t data = 4 * (21 + kVocabSize + kHeads + kHeads * kWidth * (21 + 21 + 9 + 1));
  EXPECT_EQ(static_cast<int64_t>(text().size()), 8 + static_cast<int64_t>(header_bytes(text())) + data);
}

TEST_F(StateFile, ReplacesAnOlderFileAndLeavesNoOther) {
  Session session = mock_.session();
  ASSERT_TRUE(session.prefill(prompt(5)));
  ASSERT_TRUE(session.save(path_));
  EXPECT_EQ(mock_.model.restore(path_)->position(), 5);
  EXPECT_EQ(files(), 1u);
}

TEST_F(StateFile, AFailedSaveKeepsTheOlderFileAndLeavesNoOther) {
  const std::string before = text();
  Session session = mock_.session();
  ASSERT_TRUE(session.prefill(prompt(5)));
  mock_.engine->memory_.fail_reads_ = true;
  EXPECT_FALSE(session.save(path_));
  EXPECT_EQ(text(), before);
  EXPECT_EQ(files(), 1u);
}

TEST_F(StateFile, CannotBeSavedWhereThereIsNoDirectory) {
  const Session session = mock_.session();
  EXPECT_EQ(session.save(directory_ / "missing" / "a.state").error().code, ErrorCode::kStateUnwritable);
}

TEST_F(StateFile, CannotReplaceADirectory) {
  fs::create_directory(directory_ / "d");
  const Session session = mock_.session();
  EXPECT_EQ(session.save(directory_ / "d").error().code, ErrorCode::kStateUnwritable);
  EXPECT_EQ(files(), 2u);
}

TEST_F(StateFile, RefusesAMissingFileAndADirectory) {
  EXPECT_EQ(mock_.model.restore(directory_ / "none").error().code, ErrorCode::kStateUnreadable);
  EXPECT_EQ(mock_.model.restore(directory_).error().code, ErrorCode::kStateUnreadable);
}

TEST_F(StateFile, IsRefusedWithAnyBitChanged) {
  const std::string whole = text();
  const fs::path copy = directory_ / "changed.state";
  const size_t header_bits = 8 * (8 + header_bytes(whole));
  // Two or three bits of each byte of the header, and one of every fourth byte or so of the data.
  for (size_t bit = 0; bit < 8 * whole.size(); bit += bit < header_bits ? 3 : 31) {
    std::string changed = whole;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    std::ofstream(copy, std::ios::binary) << changed;
    const auto restored = mock_.model.restore(copy);
    ASSERT_FALSE(restored) << "byte " << bit / 8 << ", bit " << bit % 8;
    ASSERT_EQ(static_cast<int32_t>(restored.error().code) / 100, 3) << restored.error().message;
  }
}

TEST_F(StateFile, SaysThatABitHasChanged) {
  std::string changed = text();
  changed.back() = static_cast<char>(changed.back() ^ 1);
  write(changed);
  const auto restored = mock_.model.restore(path_);
  ASSERT_FALSE(restored);
  EXPECT_EQ(restored.error().code, ErrorCode::kStateDamaged);
  EXPECT_NE(restored.error().message.find("a bit or more"), std::string::npos) << restored.error().message;
}

TEST_F(StateFile, RefusesAHeaderWithoutAHash) {
  for (const nlohmann::json& digits : {nlohmann::json("0"), nlohmann::json(std::string(63, 'a')), nlohmann::json()}) {
    const std::string whole = text();
    change_header([&](nlohmann::json& header) {
      header["__metadata__"]["sha256"] = digits;
      if (digits.is_null()) header["__metadata__"].erase("sha256");
    });
    EXPECT_EQ(mock_.model.restore(path_).error().code, ErrorCode::kStateDamaged) << digits;
    write(whole);
  }
}

TEST_F(StateFile, RefusesVersionOneWithTheReason) {
  change_header([](nlohmann::json& header) { header["__metadata__"]["version"] = "1"; });
  const auto restored = mock_.model.restore(path_);
  ASSERT_FALSE(restored);
  EXPECT_EQ(restored.error().code, ErrorCode::kStateVersion);
  EXPECT_NE(restored.error().message.find("has no hash"), std::string::npos) << restored.error().message;
}

TEST_F(StateFile, TellsWhereTheAnswerBegins) {
  const auto lengths = [this] {
    const std::string whole = text();
    return nlohmann::json::parse(whole.substr(8, header_bytes(whole)))["__metadata__"]["prompt_length"];
  };
  EXPECT_EQ(lengths(), "0000000021");
  Session session = *mock_.model.restore(path_);
  ASSERT_TRUE(session.decode(5));
  ASSERT_TRUE(session.sample({}));
  ASSERT_TRUE(session.save(path_));
  EXPECT_EQ(lengths(), "0000000021");
  session = *mock_.model.restore(path_);
  ASSERT_TRUE(session.prefill(prompt(4)));
  ASSERT_TRUE(session.save(path_));
  EXPECT_EQ(lengths(), "0000000027");
}

TEST_F(StateFile, WithoutThatLengthTheAnswerBeginsBehindTheContext) {
  Session session = *mock_.model.restore(path_);
  ASSERT_TRUE(session.decode(5));
  ASSERT_TRUE(session.save(path_));
  change_header([](nlohmann::json& header) { header["__metadata__"].erase("prompt_length"); });
  Session restored = *mock_.model.restore(path_);
  EXPECT_EQ(restored.position(), 22);
  ASSERT_TRUE(restored.save(path_));
  EXPECT_NE(text().find("\"prompt_length\":\"0000000022\""), std::string::npos);
}

TEST_F(StateFile, RefusesTensorsInAnotherOrder) {
  // Keys and values have the same size, so the file stays a valid safetensors file.
  change_header([](nlohmann::json& header) {
    std::swap(header["past_key_values.1.key"]["data_offsets"], header["past_key_values.1.value"]["data_offsets"]);
  });
  EXPECT_EQ(refusal(), ErrorCode::kStateDamaged);
}

TEST_F(StateFile, TakesTheBytesThatTheModelSays) {
  for (const int64_t tokens : {0, 1, 15, 21, 70, 123}) {
    Session session = mock_.session();
    if (tokens > 0) {
      ASSERT_TRUE(session.prefill(prompt(tokens)));
    }
    ASSERT_TRUE(session.save(path_));
    EXPECT_EQ(*mock_.model.state_bytes(tokens), static_cast<int64_t>(fs::file_size(path_)));
    if (tokens == 0) continue;
    ASSERT_TRUE(session.sample({}));
    ASSERT_TRUE(session.save(path_));
    EXPECT_GT(*mock_.model.state_bytes(tokens + 1), static_cast<int64_t>(fs::file_size(path_)));
  }
  for (const int64_t wrong : {int64_t{-1}, (int64_t{1} << 20) + 1, INT64_MAX}) {
    EXPECT_EQ(mock_.model.state_bytes(wrong).error().code, ErrorCode::kInvalidArgument) << wrong;
  }
}

TEST_F(StateFile, ATargetIsSavedToOnceAndAgainAfterAFailure) {
  const std::string before = text();
  Session session = mock_.session();
  ASSERT_TRUE(session.prefill(prompt(5)));
  {
    auto target = StateTarget::open(path_);
    ASSERT_TRUE(target);
    EXPECT_EQ(target->path(), path_);
    EXPECT_TRUE(target->require_room(*mock_.model.state_bytes(5)));
    EXPECT_EQ(target->require_room(-1).error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(session.save(path_).error().code, ErrorCode::kStateUnwritable);
    mock_.engine->memory_.fail_reads_ = true;
    EXPECT_FALSE(session.save(*target));
    EXPECT_EQ(text(), before);
    mock_.engine->memory_.fail_reads_ = false;
    EXPECT_TRUE(session.save(*target));
    EXPECT_EQ(mock_.model.restore(path_)->position(), 5);
    EXPECT_EQ(session.save(*target).error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(files(), 1u);
}

TEST_F(StateFile, RefusesEveryTruncation) {
  const std::string whole = text();
  const size_t data_start = 8 + header_bytes(whole);
  for (size_t size = 0; size < whole.size(); size += size < data_start ? 13 : 97) {
    write(whole.substr(0, size));
    EXPECT_EQ(refusal(), size < 8 ? ErrorCode::kStateForeign : ErrorCode::kStateDamaged) << size;
  }
  write(whole.substr(0, whole.size() - 1));
  EXPECT_EQ(refusal(), ErrorCode::kStateDamaged);
}

TEST_F(StateFile, RefusesBytesAfterItsEnd) {
  write(text() + "x");
  EXPECT_EQ(refusal(), ErrorCode::kStateDamaged);
}

TEST_F(StateFile, SurvivesEveryChangedHeaderByteWithItsHash) {
  const std::string whole = text();
  for (size_t i = 0; i < 8 + header_bytes(whole); ++i) {
    for (const char changed : {'\0', '9', '"', '\xff'}) {
      std::string damaged = whole;
      damaged[i] = changed;
      write(with_hash(damaged));
      const auto restored = mock_.model.restore(path_);
      if (restored) {
        EXPECT_EQ(restored->position(), 21);
      }
    }
  }
}

TEST_F(StateFile, RefusesForeignFiles) {
  change_header([](nlohmann::json& header) { header.erase("__metadata__"); });
  EXPECT_EQ(refusal(), ErrorCode::kStateForeign);
  using std::string_literals::operator""s;
  for (const std::string& foreign : {""s, "hello"s, "a text file that is long enough to have a header length"s,
                                     "\x02\0\0\0\0\0\0\0[]"s, "\x02\0\0\0\0\0\0\0{]"s}) {
    write(foreign);
    EXPECT_EQ(refusal(), ErrorCode::kStateForeign) << foreign;
  }
}

TEST_F(StateFile, RefusesAnotherFormatVersion) {
  change_header([](nlohmann::json& header) { header["__metadata__"]["version"] = "3"; });
  EXPECT_EQ(refusal(), ErrorCode::kStateVersion);
}

TEST_F(StateFile, RefusesTheStateOfAnotherModel) {
  ModelConfig config = mock_config();
  config.fingerprint = "another";
  EXPECT_EQ(refusal(Mock(config)), ErrorCode::kStateModel);
}

TEST_F(StateFile, RefusesTheStateOfAnotherPrecision) {
  EXPECT_EQ(refusal(Mock(mock_config(), "bf16")), ErrorCode::kStatePrecision);
}

TEST_F(StateFile, RefusesHeadersThatContradictThemselves) {
  const std::string whole = text();
  const auto set = [](const char* tensor, const char* field, nlohmann::json value) {
    return [=](nlohmann::json& header) { header[tensor][field] = value; };
  };
  const std::function<void(nlohmann::json&)> changes[] = {
      [](nlohmann::json& header) { header["__metadata__"]["past_length"] = "20"; },
      [](nlohmann::json& header) { header["__metadata__"]["past_length"] = "-21"; },
      [](nlohmann::json& header) { header["__metadata__"]["past_length"] = "21 "; },
      [](nlohmann::json& header) { header["__metadata__"]["past_length"] = "99999999999999999999"; },
      [](nlohmann::json& header) { header["__metadata__"]["past_length"] = 21; },
      [](nlohmann::json& header) { header["past_key_values.1.key"]["extra"] = 1; },
      [](nlohmann::json& header) { header["renamed"] = header["logits"], header.erase("logits"); },
      [](nlohmann::json& header) { header["__metadata__"]["prompt_length"] = "22"; },
      [](nlohmann::json& header) { header["__metadata__"]["prompt_length"] = "-1"; },
      [](nlohmann::json& header) { header["__metadata__"]["prompt_length"] = ""; },
      [](nlohmann::json& header) { header["__metadata__"]["prompt_length"] = "0x15"; },
      [](nlohmann::json& header) { header["__metadata__"]["prompt_length"] = "99999999999999999999"; },
      set("logits", "dtype", "F16"),
      set("logits", "dtype", "I32"),
      set("logits", "shape", {25, 2}),
      set("logits", "shape", {-50}),
      set("logits", "shape", {int64_t{1} << 62, int64_t{1} << 62}),
      set("logits", "data_offsets", {84, 288}),
      set("logits", "data_offsets", {284, 84}),
      set("logits", "data_offsets", {84}),
      set("logits", "data_offsets", {INT64_MAX - 200, INT64_MAX}),
      set("logits", "data_offsets", {INT64_MIN, INT64_MAX}),
      set("past_key_values.1.k2", "shape", {1, 2, 2, 3}),
  };
  int index = 0;
  for (const auto& change : changes) {
    write(whole);
    change_header(change);
    EXPECT_EQ(refusal(), ErrorCode::kStateDamaged) << index;
    ++index;
  }
}

TEST_F(StateFile, RefusesTokensOutsideTheVocabulary) {
  std::string whole = text();
  const int32_t wrong = kVocabSize;
  std::memcpy(whole.data() + 8 + header_bytes(whole), &wrong, sizeof wrong);
  write(with_hash(whole));
  EXPECT_EQ(mock_.model.restore(path_).error().code, ErrorCode::kStateDamaged);
}

}  // namespace
}  // namespace sala::test
