// States in parts: saved at any cut, put together again, and what is refused.

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "mock_engine.h"
#include "state_hash.h"

namespace sala::test {
namespace {

namespace fs = std::filesystem;
using Paths = std::vector<fs::path>;

constexpr int64_t kTokens = 150;

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

size_t data_start(const std::string& whole) {
  uint64_t length = 0;
  std::memcpy(&length, whole.data(), sizeof length);
  return 8 + length;
}

std::vector<int32_t> ids(int64_t first, int64_t last) {
  const std::vector<int32_t> all = prompt(last);
  return {all.begin() + first, all.end()};
}

class StateParts : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(directory_);
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  fs::path path(const std::string& name) const { return directory_ / name; }
  fs::path rows_path(int64_t first, int64_t last) const {
    return path("rows-" + std::to_string(first) + "-" + std::to_string(last));
  }

  /// A session whose checkpoints are at 40, 41, 70 and 150 tokens, each of a turn of its own.
  Session session(const Mock& mock) const {
    Session made = mock.session(512, 16);
    for (const auto& [first, last] : {std::pair(0, 40), std::pair(40, 41), std::pair(41, 70), std::pair(70, 150)}) {
      EXPECT_TRUE(made.prefill(ids(first, last)));
    }
    return made;
  }
  Session session() const { return session(mock_); }

  /// Saves rows at these cuts, and the checkpoint behind them.
  Paths save(const Session& session, const std::vector<int64_t>& cuts, int64_t position) const {
    Paths rows;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      rows.push_back(rows_path(cuts[i], cuts[i + 1]));
      EXPECT_TRUE(session.save_rows(rows.back(), cuts[i], cuts[i + 1]));
    }
    const auto saved = session.save_checkpoint(path("checkpoint"), cuts.back(), position);
    EXPECT_TRUE(saved) << saved.error().message;
    return rows;
  }

  Expected<Session> restore(const Paths& rows, const SessionOptions& options = {}) const {
    return mock_.model.restore_parts(rows, path("checkpoint"), options);
  }
  ErrorCode refusal(const Paths& rows, const SessionOptions& options = {}) const {
    const auto restored = restore(rows, options);
    return restored ? ErrorCode{} : restored.error().code;
  }

  /// The state file of a session: tokens, logits, lengths and every byte of its caches.
  std::string state(const Session& session) const {
    EXPECT_TRUE(session.save(path("state")));
    return text_of(path("state"));
  }

  Mock mock_;
  fs::path directory_;
};

TEST_F(StateParts, AnyCutsGiveTheSessionBack) {
  for (const bool paged : {false, true}) {
    if (paged) mock_.engine->paged_memory_ = paged_host_memory();
    const Session whole = session();
    const std::string wanted = state(whole);
    for (const std::vector<int64_t>& cuts : std::vector<std::vector<int64_t>>{
             {0}, {0, 1, 2, 3, 4, 5, 17, 149}, {0, 15, 16, 150}, {0, 16, 64, 128}, {0, 40, 41, 70, 150}, {0, 150}}) {
      auto restored = restore(save(whole, cuts, kTokens));
      ASSERT_TRUE(restored) << restored.error().message;
      EXPECT_EQ(state(*restored), wanted);
      EXPECT_EQ(restored->position(), kTokens);
      EXPECT_EQ(restored->past_length(), kTokens);
      EXPECT_EQ(values(restored->logits()), values(whole.logits()));
      ASSERT_EQ(restored->checkpoints().size(), 1u);
      EXPECT_EQ(restored->checkpoints()[0], kTokens);
    }
  }
}

TEST_F(StateParts, ACheckpointInTheMiddleGivesTheSessionThatStoodThere) {
  const Session whole = session();
  for (const int64_t position : {40, 41, 70}) {
    Session other = *whole.fork();
    ASSERT_EQ(*other.rewind(position), position);
    for (const int64_t first : {int64_t{0}, int64_t{39}, position}) {
      auto restored = restore(save(whole, first == 0 ? std::vector<int64_t>{0} : std::vector{0L, 7L, first}, position));
      ASSERT_TRUE(restored) << restored.error().message;
      EXPECT_EQ(state(*restored), state(other));
      EXPECT_EQ(values(restored->logits()), values(other.logits()));
      EXPECT_EQ(values(*restored->prefill(ids(position, kTokens))), values(whole.logits()));
    }
  }
}

TEST_F(StateParts, OfTheSameContentAreTheSameFile) {
  const Session whole = session();
  Session fork = *whole.fork();
  ASSERT_TRUE(fork.prefill(prompt(30)));
  Session restored = *restore(save(whole, {0, 33}, kTokens), {.max_context = 1000});
  for (const Session* each : std::vector<const Session*>{&fork, &restored}) {
    EXPECT_EQ(*each->save_rows(path("a"), 12, 60), *whole.save_rows(path("b"), 12, 60));
    EXPECT_EQ(text_of(path("a")), text_of(path("b")));
    EXPECT_EQ(*each->save_checkpoint(path("a"), 60, kTokens), *whole.save_checkpoint(path("b"), 60, kTokens));
    EXPECT_EQ(text_of(path("a")), text_of(path("b")));
  }
  Session other = mock_.session(512, 16);
  ASSERT_TRUE(other.prefill(prompt(149)));
  EXPECT_NE(*other.save_rows(path("a"), 12, 61), *whole.save_rows(path("b"), 12, 60));
}

TEST_F(StateParts, HaveTheHashThatIsReturned) {
  const Session whole = session();
  const auto check = [&](const std::string& digits) {
    EXPECT_NE(text_of(path("a")).find("\"sha256\":\"" + digits + "\""), std::string::npos);
    EXPECT_EQ(with_hash(text_of(path("a"))), text_of(path("a")));
  };
  check(*whole.save_rows(path("a"), 3, 60));
  check(*whole.save_checkpoint(path("a"), 60, kTokens));
}

TEST_F(StateParts, HoldTheRowsOfTheirTokensOnly) {
  const Session whole = session();
  ASSERT_TRUE(whole.save_rows(path("a"), 20, 21));
  // One token, a key and a value of each head, and no compressed key: windows of k1 end at even lengths.
  EXPECT_EQ(text_of(path("a")).size(), data_start(text_of(path("a"))) + 4 * (1 + 2 * kHeads * kWidth));
  ASSERT_TRUE(whole.save_checkpoint(path("a"), kTokens, kTokens));
  EXPECT_EQ(text_of(path("a")).size(), data_start(text_of(path("a"))) + 4 * (kVocabSize + kHeads));
}

TEST_F(StateParts, ACheckpointIsMadeWhereTheSessionStands) {
  Session session = *mock_.model.create_session({.max_context = 64, .chunk_tokens = 16, .max_checkpoints = 0});
  EXPECT_EQ(session.save_checkpoint(path("checkpoint"), 0, 0).error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(session.prefill(prompt(25)));
  ASSERT_TRUE(session.decode(5));
  const std::vector<float> logits = values(session.logits());
  ASSERT_TRUE(session.sample({}));
  EXPECT_EQ(session.past_length(), 26);
  ASSERT_TRUE(session.save_checkpoint(path("checkpoint"), 0, 26));
  EXPECT_TRUE(session.checkpoints().empty());
  const Session restored = *restore({}, {.max_context = 26, .chunk_tokens = {}, .max_checkpoints = 0});
  EXPECT_EQ(restored.position(), 26);
  EXPECT_EQ(values(restored.logits()), logits);
  EXPECT_NE(text_of(path("checkpoint")).find("\"prompt_length\":\"0000000025\""), std::string::npos);
  EXPECT_NE(state(restored).find("\"prompt_length\":\"0000000025\""), std::string::npos);
}

TEST_F(StateParts, AreRefusedWhereThereAreNone) {
  Session session = this->session();
  for (const auto& [first, last] : std::vector<std::pair<int64_t, int64_t>>{
           {-1, 3}, {3, 3}, {4, 3}, {0, 151}, {150, 151}, {0, 0}, {INT64_MIN, INT64_MAX}}) {
    EXPECT_EQ(session.save_rows(path("a"), first, last).error().code, ErrorCode::kInvalidArgument) << first;
  }
  for (const auto& [first, position] : std::vector<std::pair<int64_t, int64_t>>{
           {-1, 40}, {41, 40}, {0, 0}, {0, -1}, {0, 39}, {0, 151}, {0, INT64_MAX}}) {
    EXPECT_EQ(session.save_checkpoint(path("a"), first, position).error().code, ErrorCode::kInvalidArgument) << first;
  }
  const std::string message = session.save_checkpoint(path("a"), 0, 42).error().message;
  EXPECT_NE(message.find("40, 41, 70, "), std::string::npos) << message;
  ASSERT_TRUE(session.sample({}));
  EXPECT_EQ(session.save_rows(path("a"), 0, 151).error().code, ErrorCode::kInvalidArgument) << "it has not run";
  EXPECT_FALSE(fs::exists(path("a")));
  ASSERT_TRUE(session.save(path("state")));
  session = *mock_.model.restore(path("state"));
  EXPECT_EQ(session.save_checkpoint(path("a"), 0, kTokens).error().code, ErrorCode::kInvalidArgument) << "no logits";
  EXPECT_TRUE(session.save_rows(path("a"), 0, kTokens));
  mock_.engine->log_->fail_at = mock_.steps().size();
  EXPECT_FALSE(session.decode(3));
  EXPECT_EQ(session.save_rows(path("a"), 0, 9).error().code, ErrorCode::kSessionPoisoned);
  EXPECT_EQ(session.save_checkpoint(path("a"), 0, 40).error().code, ErrorCode::kSessionPoisoned);
}

TEST_F(StateParts, AFailedSaveKeepsTheOlderFile) {
  const Session whole = session();
  ASSERT_TRUE(whole.save_rows(path("a"), 0, 9));
  const std::string before = text_of(path("a"));
  mock_.engine->memory_.fail_reads_ = true;
  EXPECT_FALSE(whole.save_rows(path("a"), 0, 10));
  EXPECT_FALSE(whole.save_checkpoint(path("a"), 0, kTokens));
  EXPECT_EQ(text_of(path("a")), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), {}), 1);
  EXPECT_EQ(whole.save_rows(path("none") / "a", 0, 9).error().code, ErrorCode::kStateUnwritable);
  EXPECT_EQ(whole.save_checkpoint(path("none") / "a", 0, 40).error().code, ErrorCode::kStateUnwritable);
}

TEST_F(StateParts, AreNotSavedByAChildOfTheProcess) {
  mock_.engine->paged_memory_ = paged_host_memory();
  const Session whole = session();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const bool refused = !whole.save_rows(path("a"), 3, 60) && !whole.save_checkpoint(path("a"), 3, 40);
    _exit(refused && !fs::exists(path("a")) ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(StateParts, AreRefusedWithAnyBitChanged) {
  const Paths rows = save(session(), {0, 7, 33}, 41);
  for (const fs::path& each : {rows[0], rows[1], path("checkpoint")}) {
    const std::string whole = text_of(each);
    const size_t header_bits = 8 * data_start(whole);
    for (size_t bit = 0; bit < 8 * whole.size(); bit += bit < header_bits ? 29 : 127) {
      std::string changed = whole;
      changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
      write_text(each, changed);
      const auto restored = restore(rows);
      ASSERT_FALSE(restored) << each << ", byte " << bit / 8 << ", bit " << bit % 8;
      ASSERT_EQ(static_cast<int32_t>(restored.error().code) / 100, 3) << restored.error().message;
    }
    write_text(each, whole.substr(0, whole.size() - 1));
    EXPECT_EQ(refusal(rows), ErrorCode::kStateDamaged);
    write_text(each, whole);
  }
  EXPECT_TRUE(restore(rows));
}

TEST_F(StateParts, MustFollowEachOther) {
  const Session whole = session();
  const Paths rows = save(whole, {0, 16, 32, 48}, 70);
  ASSERT_TRUE(restore(rows));
  const auto& [a, b, c] = std::tie(rows[0], rows[1], rows[2]);
  for (const Paths& wrong : {Paths{}, {a}, {a, b}, {a, c}, {b, c}, {b, a, c}, {a, c, b}, {a, a, b, c}, {a, b, c, c}}) {
    EXPECT_EQ(refusal(wrong), ErrorCode::kStateDamaged);
  }
  ASSERT_TRUE(whole.save_rows(path("more"), 32, 120));
  EXPECT_EQ(refusal({a, b, path("more")}, {.max_context = 70}), ErrorCode::kStateDamaged) << "beyond the caches";
  ASSERT_TRUE(whole.save_rows(path("over"), 31, 48));
  EXPECT_EQ(refusal({a, b, path("over")}), ErrorCode::kStateDamaged);
  EXPECT_EQ(refusal({a, b, path("none")}), ErrorCode::kStateUnreadable);
}

TEST_F(StateParts, AreOfOneModelAndPrecision) {
  const Paths rows = save(session(), {0, 16, 32}, 70);
  ModelConfig config = mock_config();
  config.fingerprint = "another";
  for (const auto& [other, code] : {std::pair(Mock(config), ErrorCode::kStateModel),
                                    std::pair(Mock(mock_config(), "bf16"), ErrorCode::kStatePrecision)}) {
    const int64_t allocations = other.engine->memory_.allocations_;
    EXPECT_EQ(other.model.restore_parts(rows, path("checkpoint"), {}).error().code, code);
    EXPECT_EQ(other.engine->memory_.allocations_, allocations);
    ASSERT_TRUE(session(other).save_rows(path("other"), 16, 32));
    EXPECT_EQ(refusal({rows[0], path("other")}), code);
  }
}

TEST_F(StateParts, AndStatesDoNotStandForEachOther) {
  const Session whole = session();
  const Paths rows = save(whole, {0, 16}, 70);
  ASSERT_TRUE(whole.save(path("state")));
  EXPECT_EQ(refusal({path("state")}), ErrorCode::kStateForeign);
  EXPECT_EQ(refusal({path("checkpoint")}), ErrorCode::kStateForeign);
  for (const fs::path& each : {path("state"), rows[0]}) {
    EXPECT_EQ(mock_.model.restore_parts(rows, each, {}).error().code, ErrorCode::kStateForeign);
  }
  for (const fs::path& each : {path("checkpoint"), rows[0]}) {
    EXPECT_EQ(mock_.model.restore(each).error().code, ErrorCode::kStateForeign);
  }
}

TEST_F(StateParts, RefuseHeadersThatContradictThemselves) {
  const Paths rows = save(session(), {0, 16, 32}, 70);
  const auto change = [](const fs::path& each, const char* field, const nlohmann::json& value) {
    const std::string whole = text_of(each);
    auto header = nlohmann::json::parse(whole.substr(8, data_start(whole) - 8));
    header["__metadata__"][field] = value;
    if (value.is_null()) header["__metadata__"].erase(field);
    const std::string changed = header.dump();
    const uint64_t length = changed.size();
    write_text(each, with_hash(std::string(reinterpret_cast<const char*>(&length), sizeof length) + changed +
                               whole.substr(data_start(whole))));
    return whole;
  };
  using Change = std::pair<const char*, nlohmann::json>;
  const auto refused = [&](const fs::path& each, const std::vector<Change>& changes) {
    for (const auto& [field, value] : changes) {
      const std::string whole = change(each, field, value);
      const bool is_version = field == std::string("version");
      EXPECT_EQ(refusal(rows), is_version ? ErrorCode::kStateVersion : ErrorCode::kStateDamaged) << field << value;
      write_text(each, whole);
    }
  };
  refused(rows[1], {{"first", "15"},
                    {"first", ""},
                    {"first", {}},
                    {"first", "-1"},
                    {"first", "99999999999"},
                    {"last", "33"},
                    {"last", {}},
                    {"version", "2"},
                    {"sha256", {}}});
  refused(path("checkpoint"), {{"first", "31"},
                               {"first", {}},
                               {"past_length", "71"},
                               {"past_length", {}},
                               {"prompt_length", "71"},
                               {"prompt_length", {}},
                               {"version", "2"},
                               {"sha256", {}}});
  // A checkpoint of as many tokens, beyond what any session holds.
  change(path("checkpoint"), "first", "2147483600");
  change(path("checkpoint"), "past_length", "2147483638");
  EXPECT_EQ(refusal(rows), ErrorCode::kContextExceeded);
}

TEST_F(StateParts, RefuseMoreThanTheSessionHolds) {
  const Paths rows = save(session(), {0, 16, 32}, 70);
  EXPECT_TRUE(restore(rows, {.max_context = 70}));
  const int64_t allocations = mock_.engine->memory_.allocations_;
  EXPECT_EQ(refusal(rows, {.max_context = 69}), ErrorCode::kContextExceeded);
  EXPECT_EQ(mock_.engine->memory_.allocations_, allocations);
}

TEST_F(StateParts, RefuseTokensOutsideTheVocabulary) {
  const Paths rows = save(session(), {0, 16, 32}, 70);
  for (const fs::path& each : {rows[1], path("checkpoint")}) {
    const std::string whole = text_of(each);
    std::string changed = whole;
    const int32_t wrong = kVocabSize;
    std::memcpy(changed.data() + data_start(whole), &wrong, sizeof wrong);
    write_text(each, with_hash(changed));
    EXPECT_EQ(refusal(rows), ErrorCode::kStateDamaged);
    write_text(each, whole);
  }
}

TEST_F(StateParts, TellWhichOneIsLookedAt) {
  const Paths rows = save(session(), {0, 16, 32}, 70);
  std::vector<size_t> told;
  const auto tell = [&](size_t part) {
    told.push_back(part);
    return true;
  };
  ASSERT_TRUE(mock_.model.restore_parts(rows, path("checkpoint"), {}, tell));
  EXPECT_EQ(told, (std::vector<size_t>{2, 0, 1, 2}));
  told.clear();
  const auto stop = [&](size_t part) {
    told.push_back(part);
    return part != 0;
  };
  EXPECT_EQ(mock_.model.restore_parts(rows, path("checkpoint"), {}, stop).error().code, ErrorCode::kStopped);
  EXPECT_EQ(told, (std::vector<size_t>{2, 0}));
  const auto last_told = [&] {
    told.clear();
    EXPECT_FALSE(mock_.model.restore_parts(rows, path("checkpoint"), {}, tell));
    return told;
  };
  const std::string whole = text_of(path("checkpoint"));
  std::string changed = whole;
  changed.back() = static_cast<char>(changed.back() ^ 1);
  write_text(path("checkpoint"), changed);
  EXPECT_EQ(last_told(), (std::vector<size_t>{2, 0, 1, 2})) << "its content";
  write_text(path("checkpoint"), "no header");
  EXPECT_EQ(last_told(), (std::vector<size_t>{2})) << "its header";
  write_text(path("checkpoint"), whole);
  fs::remove(rows[1]);
  EXPECT_EQ(last_told(), (std::vector<size_t>{2, 0, 1}));
}

}  // namespace
}  // namespace sala::test
