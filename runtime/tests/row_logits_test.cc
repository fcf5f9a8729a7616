// Logits of more tokens than the last: those of a session that reads one token a step, however the prompt is cut.

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <stdexcept>

#include "mock_engine.h"
#include "sala/prefiller.h"
#include "session/session_core.h"

namespace sala::test {
namespace {

using Rows = std::map<int64_t, std::vector<float>>;

/// Options that collect the logits of `tokens` in `rows`.
PrefillOptions wanting(std::vector<int64_t> tokens, Rows& rows) {
  PrefillOptions options{.context_length = {}, .on_progress = {}};
  options.logit_tokens = std::move(tokens);
  options.on_logits = [&rows](std::span<const int64_t> given, std::span<const float> logits) {
    ASSERT_LE(given.size(), static_cast<size_t>(kMaxLogitRows));
    ASSERT_EQ(logits.size(), given.size() * kVocabSize);
    for (size_t i = 0; i < given.size(); ++i) {
      const bool is_behind = rows.empty() || given[i] > rows.rbegin()->first;
      EXPECT_TRUE(is_behind) << "in order, each once";
      rows[given[i]] = values(logits.subspan(i * kVocabSize, kVocabSize));
    }
  };
  return options;
}

std::vector<int64_t> all(int64_t tokens) {
  std::vector<int64_t> indices(static_cast<size_t>(tokens));
  std::iota(indices.begin(), indices.end(), 0);
  return indices;
}

std::vector<int64_t> every(int64_t step, int64_t first, int64_t tokens) {
  std::vector<int64_t> indices;
  for (int64_t token = first; token < tokens; token += step) indices.push_back(token);
  return indices;
}

/// The logits of each of `ids`, read one by one.
std::vector<std::vector<float>> one_by_one(Session& session, std::span<const int32_t> ids) {
  const int64_t end = session.position() + static_cast<int64_t>(ids.size());
  std::vector<std::vector<float>> rows;
  for (const int32_t id : ids) {
    const auto logits = session.prefill({&id, 1}, {.context_length = end, .on_progress = {}});
    EXPECT_TRUE(logits) << logits.error().message;
    rows.push_back(values(*logits));
  }
  return rows;
}

void expect_rows(const Rows& rows, const std::vector<int64_t>& tokens, const std::vector<std::vector<float>>& wanted) {
  ASSERT_EQ(rows.size(), tokens.size());
  for (const int64_t token : tokens) EXPECT_EQ(rows.at(token), wanted[static_cast<size_t>(token)]) << token;
}

TEST(RowLogits, AreThoseOfTokensReadOneByOneHoweverThePromptIsCut) {
  for (const int64_t length : {int64_t{1}, int64_t{5}, kDenseLength - 1, kDenseLength, int64_t{97}}) {
    const auto ids = prompt(length);
    const Mock reference;
    Session alone = reference.session(200, 1);
    const auto wanted = one_by_one(alone, ids);
    const std::vector<float> after = values(*alone.decode(7));
    for (const int64_t chunk : {1, 2, 7, 16, 64}) {
      for (const auto& tokens :
           {all(length), every(3, 0, length), every(chunk, 0, length), every(chunk, chunk - 1, length),
            every(1, length - 1, length), every(1, length / 2, length), every(41, 0, length)}) {
        const Mock mock, plain;
        Session session = mock.session(200, chunk), without = plain.session(200, chunk);
        Rows rows;
        const auto logits = session.prefill(ids, wanting(tokens, rows));
        ASSERT_TRUE(logits) << logits.error().message;
        EXPECT_EQ(values(*logits), wanted.back());
        expect_rows(rows, tokens, wanted);
        EXPECT_LE(mock.engine->log_->most_rows, static_cast<size_t>(kMaxLogitRows));
        ASSERT_TRUE(without.prefill(ids));
        EXPECT_TRUE(std::ranges::equal(session.checkpoints(), without.checkpoints()));
        EXPECT_EQ(values(*session.decode(7)), after);
      }
    }
  }
}

TEST(RowLogits, CutOnlyTheStepsThatWouldGiveMoreThanTheEngineServes) {
  const auto steps = [](std::vector<int64_t> tokens) {
    const Mock mock;
    Session session = mock.session(100, 16);
    Rows rows;
    EXPECT_TRUE(session.prefill(prompt(40), wanting(std::move(tokens), rows)));
    std::vector<int64_t> lengths;
    for (const Step& step : mock.steps()) lengths.push_back(step.tokens);
    return lengths;
  };
  EXPECT_EQ(steps({3}), (std::vector<int64_t>{16, 16, 8}));
  EXPECT_EQ(steps({0, 2, 4, 6, 8}), (std::vector<int64_t>{16, 16, 8})) << "with the last, six";
  EXPECT_EQ(steps({0, 2, 4, 6, 8, 15}), (std::vector<int64_t>{16, 16, 8}));
  EXPECT_EQ(steps({0, 2, 4, 6, 8, 10}), (std::vector<int64_t>{11, 5, 16, 8}));
  EXPECT_EQ(steps({16, 17, 18, 19, 20, 21, 22}), (std::vector<int64_t>{16, 6, 10, 8}));
}

TEST(RowLogits, DoNotCountThePendingToken) {
  const auto ids = prompt(45);
  for (const int64_t chunk : {1, 4, 16}) {
    const Mock mock;
    Session session = mock.session(100, chunk);
    ASSERT_TRUE(session.prefill(prompt(9)));
    ASSERT_TRUE(session.sample({}));
    Session same = *session.fork();
    Rows rows;
    ASSERT_TRUE(session.prefill(ids, wanting(all(45), rows)));
    expect_rows(rows, all(45), one_by_one(same, ids));
  }
}

TEST(RowLogits, ComeInPiecesOfAPromptOfKnownLength) {
  const auto ids = prompt(60);
  const Mock mock, reference;
  Session session = mock.session(100, 16), alone = reference.session(100, 1);
  Rows rows;
  auto prefiller = Prefiller::create(session, wanting(all(60), rows), 60);
  ASSERT_TRUE(prefiller) << prefiller.error().message;
  for (size_t first = 0; first < 60; first += 10) ASSERT_TRUE(prefiller->feed(std::span(ids).subspan(first, 10)));
  ASSERT_TRUE(prefiller->finish());
  expect_rows(rows, all(60), one_by_one(alone, ids));
}

TEST(RowLogits, AreWhatHadRunWhenThePrefillEndsEarly) {
  const auto ids = prompt(60);
  const Mock reference;
  Session alone = reference.session(100, 1);
  const auto wanted = one_by_one(alone, ids);
  for (const bool throws : {false, true}) {
    const Mock mock;
    Session session = mock.session(100, 16);
    Rows rows;
    PrefillOptions options = wanting(all(60), rows);
    if (throws) {
      options.on_logits = [&, collect = options.on_logits](std::span<const int64_t> tokens,
                                                           std::span<const float> logits) {
        collect(tokens, logits);
        if (rows.size() > 20) throw std::runtime_error("enough");
      };
      EXPECT_THROW(static_cast<void>(session.prefill(ids, options)), std::runtime_error);
    } else {
      options.on_progress = [](const PrefillProgress& progress) { return progress.tokens_done <= 20; };
      EXPECT_EQ(session.prefill(ids, options).error().code, ErrorCode::kStopped);
    }
    ASSERT_EQ(session.position(), 22) << "16 in steps of 6, 6 and 4, then 6";
    expect_rows(rows, all(22), wanted);
    Rows rest;
    PrefillOptions others = wanting(all(38), rest);
    others.context_length = 60;
    ASSERT_TRUE(session.prefill(std::span(ids).subspan(22), others));
    EXPECT_EQ(rest.size(), 38u);
    for (const auto& [token, logits] : rest) EXPECT_EQ(logits, wanted[static_cast<size_t>(token + 22)]);
  }
}

TEST(RowLogits, OfTokensThatAreNotThereAreRefused) {
  const Mock mock;
  Session session = mock.session();
  Rows rows;
  const auto refusal = [&](const PrefillOptions& options) {
    const auto outcome = session.prefill(prompt(10), options);
    EXPECT_EQ(outcome.error().code, ErrorCode::kInvalidArgument);
    return outcome.error().message;
  };
  EXPECT_EQ(refusal(wanting({3, 12}, rows)), "logit_tokens has 12, expected 0 to 9, the tokens of this call");
  EXPECT_EQ(refusal(wanting({-1}, rows)), "logit_tokens has -1, expected 0 to 9, the tokens of this call");
  EXPECT_EQ(refusal(wanting({4, 4}, rows)), "logit_tokens has 4 behind 4, expected rising numbers");
  EXPECT_EQ(refusal(wanting({4, 2}, rows)), "logit_tokens has 2 behind 4, expected rising numbers");
  PrefillOptions nowhere = wanting({4}, rows);
  nowhere.on_logits = {};
  EXPECT_EQ(refusal(nowhere), "logit_tokens are given without on_logits, which takes their logits");
  EXPECT_EQ(Prefiller::create(session, wanting({4}, rows)).error().message,
            "logit_tokens are given for a stream of unknown length: give tokens_total, the length");
  EXPECT_TRUE(rows.empty());
  EXPECT_TRUE(mock.steps().empty());
}

TEST(RowLogits, OfAStepAreChecked) {
  const Mock mock;
  auto step = StepInterface::create(mock_config(), mock.engine->inputs(), mock.engine->outputs());
  auto model = std::make_shared<const ModelData>(
      ModelData{mock_config(), mock.engine, *std::move(step), {}, paged_host_memory()});
  const auto core = *SessionCore::create(std::move(model), {100, 16});
  const auto ids = prompt(10);
  const auto code = [&](std::vector<int32_t> rows) {
    const Status ran = core->run(ids, 10, rows);
    return ran ? std::optional<ErrorCode>() : ran.error().code;
  };
  for (const auto& rows : {std::vector<int32_t>{10}, {-1}, {3, 3}, {3, 2}, {0, 1, 2, 3, 4, 5}}) {
    EXPECT_EQ(code(rows), ErrorCode::kInvalidArgument);
    EXPECT_EQ(core->position(), 0);
  }
  EXPECT_EQ(code({0, 1, 2, 3, 4, 9}), std::nullopt);
  EXPECT_EQ(core->row_logits().size(), static_cast<size_t>(6 * kVocabSize));
  EXPECT_TRUE(std::ranges::equal(core->row_logits().last(kVocabSize), core->logits()));
  core->drop_row_logits();
  EXPECT_TRUE(core->row_logits().empty());
}

}  // namespace
}  // namespace sala::test
