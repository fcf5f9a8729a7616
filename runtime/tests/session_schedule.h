// Sessions at random: prompts, answers, forks, checkpoints, ways back, states. Each must give the logits of a session
// on the mock that only ever read the tokens which this one holds.

#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "mock_engine.h"
#include "sala/model.h"
#include "sala/session.h"
#include "some_tokens.h"

namespace sala::test {

class Schedule {
 public:
  Schedule(const Model& model, const Mock& mock, unsigned seed) : model_(model), mock_(mock), random_(seed) {}

  void run(int operations) {
    sessions_.push_back({*model_.create_session({kMaxContext, 16, 3}), {}, {}});
    for (int i = 0; i < operations && !testing::Test::HasFailure(); ++i) {
      change(sessions_[pick(sessions_.size())]);
      check(sessions_[pick(sessions_.size())]);
    }
    for (Known& each : sessions_) check(each);
  }

  /// Drafts that were right.
  int64_t accepted() const { return accepted_; }

 private:
  static constexpr int64_t kMaxContext = 600;

  struct Known {
    Session session;
    std::vector<std::pair<int32_t, int64_t>> ran;  // tokens, and the context that their steps were told
    std::optional<int32_t> pending;
    bool has_logits = true;  // a state with a pending token has none to come back to

    int64_t length() const { return static_cast<int64_t>(ran.size() + pending.has_value()); }
    /// What a step on the pending token and these runs.
    void run(const std::vector<int32_t>& ids) {
      const int64_t context = length() + static_cast<int64_t>(ids.size());
      has_logits = true;
      if (pending) ran.emplace_back(*std::exchange(pending, {}), context);
      for (const int32_t id : ids) ran.emplace_back(id, context);
    }
  };

  size_t pick(size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(random_); }

  std::vector<int32_t> ids(size_t count) {
    std::vector<int32_t> ids(count);
    for (int32_t& id : ids) id = static_cast<int32_t>(pick(kVocabSize - 3) + 3);
    return ids;
  }

  void change(Known& known) {
    switch (pick(12)) {
      case 0:
      case 1:
        return prefill(known, pick(4) == 0 ? 1 + pick(120) : 1 + pick(20));
      case 2:
        return decode(known);
      case 3:
        return sample(known);
      case 4:
      case 5:
        return fork(known);
      case 6:
        return rewind(known);
      case 7:
        return save(known);
      case 8:
        return generate_together();
      case 9:
      case 10:
        return speculate(known);
      default:
        if (pick(5) == 0) drop();
        ASSERT_TRUE(sessions_[pick(sessions_.size())].session.checkpoint());
    }
  }

  void prefill(Known& known, size_t count) {
    const auto prompt = ids(count);
    const auto logits = known.session.prefill(prompt);
    if (known.length() + static_cast<int64_t>(count) > kMaxContext) {
      EXPECT_EQ(logits.error().code, ErrorCode::kContextExceeded);
      return;
    }
    ASSERT_TRUE(logits) << logits.error().message;
    known.run(prompt);
    EXPECT_EQ(known.session.checkpoints().back(), known.length());
  }

  void decode(Known& known) {
    if (known.length() + 1 > kMaxContext) return;
    const auto token = ids(1);
    ASSERT_TRUE(known.session.decode(token[0]));
    known.run(token);
  }

  void sample(Known& known) {
    const auto token = known.session.sample({});
    if (known.pending || known.ran.empty() || !known.has_logits) {
      EXPECT_EQ(token.error().code, ErrorCode::kNoLogits);
    } else if (token) {
      known.pending = *token;
    }
  }

  void fork(Known& known) {
    if (sessions_.size() > 8) return;
    auto fork = known.session.fork();
    ASSERT_TRUE(fork) << fork.error().message;
    Known made{*std::move(fork), known.ran, known.pending, known.has_logits};
    sessions_.push_back(std::move(made));
  }

  void rewind(Known& known) {
    const auto position = static_cast<int64_t>(pick(static_cast<size_t>(known.length()) + 1));
    const auto kept = known.session.checkpoints();
    std::optional<int64_t> wanted;
    for (const int64_t each : kept) {
      if (each <= position) wanted = each;
    }
    const bool is_taken_back = position == static_cast<int64_t>(known.ran.size()) && known.has_logits;
    if (position == known.length() || (is_taken_back && position > 0)) wanted = position;
    const auto reached = known.session.rewind(position);
    if (!wanted) {
      EXPECT_EQ(reached.error().code, ErrorCode::kInvalidArgument);
      return;
    }
    ASSERT_TRUE(reached) << reached.error().message;
    EXPECT_EQ(*reached, *wanted);
    if (*reached < known.length()) {
      known.pending.reset();
      known.has_logits = true;
    }
    known.ran.resize(std::min(known.ran.size(), static_cast<size_t>(*reached)));
  }

  void save(Known& known) {
    const auto path = std::filesystem::path(testing::TempDir()) / ("schedule" + std::to_string(getpid()) + ".state");
    ASSERT_TRUE(known.session.save(path));
    auto restored = model_.restore(path, {kMaxContext, 16, 3});
    ASSERT_TRUE(restored) << restored.error().message;
    known.session = *std::move(restored);
    if (known.pending) known.has_logits = false;
  }

  /// Some sessions draw answers together, up to a random step. Each token must be the one that a fork draws alone.
  void generate_together() {
    std::vector<Known*> members;
    for (Known& each : sessions_) {
      if (each.length() > 0 && (each.pending || each.has_logits) && members.size() < 5 && pick(2) == 0) {
        members.push_back(&each);
      }
    }
    if (members.empty()) return;
    std::vector<Session*> sessions;
    std::vector<GenerateOptions> options;
    std::vector<Session> alone;
    for (Known* each : members) {
      sessions.push_back(&each->session);
      options.push_back({static_cast<int64_t>(pick(12)), {.temperature = 0.5, .seed = pick(100)}, {{3, 4}}});
      alone.push_back(*each->session.fork());
    }
    auto batch = model_.generate_batch(sessions, options);
    if (model_.engine().memory().page_bytes() == 1 || model_.engine().limits().max_batch == 1) {
      ASSERT_FALSE(batch);
      EXPECT_EQ(batch.error().code, ErrorCode::kInvalidArgument);
      return;
    }
    ASSERT_TRUE(batch) << batch.error().message;
    std::vector<Generation> generations;
    for (size_t i = 0; i < alone.size(); ++i) generations.push_back(*alone[i].generate(options[i]));
    for (size_t steps = pick(14); steps > 0 && !batch->has_finished(); --steps) {
      const auto tokens = batch->next();
      ASSERT_TRUE(tokens) << tokens.error().message;
      for (size_t i = 0; i < members.size(); ++i) {
        EXPECT_EQ((*tokens)[i], *generations[i].next());
        EXPECT_EQ(batch->finish_reason(i), generations[i].finish_reason());
        EXPECT_TRUE(batch->status(i));
      }
    }
    for (Known* each : members) take_answer(*each);
  }

  /// Draws an answer with drafts up to a random token. It must be the one that a fork draws without.
  void speculate(Known& known) {
    if (known.length() == 0 || !(known.pending || known.has_logits)) return;
    const std::vector<int32_t> words = ids(1 + pick(3));
    GenerateOptions options{static_cast<int64_t>(pick(60)), {}, {{3, 4}}};
    options.sampling = {.temperature = pick(2) * 900.0, .repetition_penalty = 1.1, .seed = pick(100)};
    options.sampling.frequency_penalty = 0.5;
    const bool is_constrained = pick(4) > 0;
    Session plain = *known.session.fork();
    if (is_constrained) options.constraint = some_tokens(words);
    auto expected = *plain.generate(options);
    if (is_constrained) options.constraint = some_tokens(words);
    options.speculation = 1 + pick(9);
    auto generation = *known.session.generate(options);
    for (size_t tokens = pick(64); tokens > 0; --tokens) {
      const auto token = generation.next();
      ASSERT_TRUE(token) << token.error().message;
      EXPECT_EQ(*token, *expected.next());
      EXPECT_EQ(generation.finish_reason(), expected.finish_reason());
      EXPECT_EQ(known.session.position(), plain.position());
      EXPECT_EQ(known.session.past_length(), plain.past_length());
      if (!*token) break;
    }
    accepted_ += generation.speculation().accepted;
    take_answer(known);
  }

  /// Notes the tokens that the session has drawn.
  void take_answer(Known& known) {
    const auto drawn = known.session.tokens().subspan(static_cast<size_t>(known.length()));
    if (known.pending && known.session.past_length() > static_cast<int64_t>(known.ran.size())) known.run({});
    for (const int32_t token : drawn) {
      if (known.pending) known.run({});
      known.pending = token;
    }
  }

  void drop() {
    if (sessions_.size() > 1) sessions_.erase(sessions_.begin() + static_cast<ptrdiff_t>(pick(sessions_.size())));
  }

  void check(Known& known) {
    EXPECT_EQ(known.session.position(), known.length());
    if (known.ran.empty()) return;
    Session same = mock_.session(kMaxContext, 64);
    for (size_t first = 0; first < known.ran.size();) {
      std::vector<int32_t> ids;
      const int64_t context = known.ran[first].second;
      for (; first < known.ran.size() && known.ran[first].second == context; ++first)
        ids.push_back(known.ran[first].first);
      ASSERT_TRUE(
          same.prefill(ids, {.context_length = std::max(context, same.position() + static_cast<int64_t>(ids.size())),
                             .on_progress = {}}));
    }
    if (!known.pending && known.has_logits) {
      EXPECT_EQ(values(known.session.logits()), values(same.logits()));
    }
  }

  const Model& model_;
  const Mock& mock_;
  std::mt19937 random_;
  std::vector<Known> sessions_;
  int64_t accepted_ = 0;
};

}  // namespace sala::test
