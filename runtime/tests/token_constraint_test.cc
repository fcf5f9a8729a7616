// Answers under a constraint, and with log-probabilities: alone, in a batch and of a scheduler. What a constraint does
// concerns its own answer.

#include "sala/token_constraint.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "requests.h"
#include "sala/batch.h"

namespace sala::test {
namespace {

/// Token n of the answer is one of `each[n]`. It notes what came, and can fail in either call.
class Listed final : public TokenConstraint {
 public:
  explicit Listed(std::vector<std::vector<int32_t>> each) : each_(std::move(each)) {}

  Expected<std::span<const uint32_t>> allowed() override {
    if (taken.size() == fails_at && fails_before_draw) return error(ErrorCode::kOutOfMemory, "the caller's own");
    words_.assign(2, 0);
    for (const int32_t token : each_[taken.size() % each_.size()]) words_[token / 32] |= 1u << token % 32;
    return std::span<const uint32_t>(words_);
  }

  Status take(int32_t token) override {
    taken.push_back(token);
    if (taken.size() > fails_at && !fails_before_draw) return error(ErrorCode::kOutOfMemory, "the caller's own");
    return success();
  }

  std::vector<int32_t> taken;
  size_t fails_at = SIZE_MAX;  // tokens that have come by then
  bool fails_before_draw = true;

 private:
  std::vector<std::vector<int32_t>> each_;
  std::vector<uint32_t> words_;
};

const std::vector<std::vector<int32_t>> kEach = {{5, 49}, {31, 32, 33}, {0}, {7, 8, 9, 40}};

GenerateOptions under(std::shared_ptr<TokenConstraint> constraint, int64_t tokens = 10) {
  GenerateOptions options = answer_of(tokens, 0.9).generate;
  options.constraint = std::move(constraint);
  options.logprobs = 3;
  return options;
}

void expect_listed(std::span<const int32_t> tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_TRUE(std::ranges::count(kEach[i % kEach.size()], tokens[i])) << "token " << i << " is " << tokens[i];
  }
}

void expect_same(const TokenLogprobs* found, const TokenLogprobs& expected) {
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->logprob, expected.logprob);
  EXPECT_EQ(found->top, expected.top);
}

/// What was asked for of a token, by a session that reads the tokens before it one by one.
TokenLogprobs expected_of(Session& alone, int32_t token) {
  const TokenLogprobs expected = *token_logprobs(alone.logits(), token, 3);
  EXPECT_TRUE(alone.decode(token));
  return expected;
}

TEST(TokenConstraint, HoldsForEveryTokenAndHearsOfIt) {
  const Mock mock, reference;
  Session session = mock.session(), alone = reference.session();
  ASSERT_TRUE(session.prefill(prompt(20)));
  ASSERT_TRUE(alone.prefill(prompt(20)));
  const auto constraint = std::make_shared<Listed>(kEach);
  auto generation = session.generate(under(constraint));
  std::vector<int32_t> tokens;
  while (const auto token = *generation->next()) {
    tokens.push_back(*token);
    expect_same(generation->logprobs(), expected_of(alone, *token));
  }
  EXPECT_EQ(generation->logprobs(), nullptr) << "there is no token any more";
  EXPECT_EQ(tokens.size(), 10u);
  EXPECT_EQ(constraint->taken, tokens);
  expect_listed(tokens);
}

TEST(TokenConstraint, HoldsForStopTokensWhichItHearsOfToo) {
  const Mock mock;
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(20)));
  const auto constraint = std::make_shared<Listed>(std::vector<std::vector<int32_t>>{{5}, {6}, {2}});
  GenerateOptions options = under(constraint);
  options.stop_tokens = std::vector<int32_t>{2};
  auto generation = session.generate(options);
  EXPECT_EQ(all(*generation), (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(generation->finish_reason(), FinishReason::kStopToken);
  EXPECT_EQ(constraint->taken, (std::vector<int32_t>{5, 6, 2}));
  EXPECT_EQ(generation->logprobs(), nullptr);
}

TEST(TokenConstraint, ErrorEndsItsAnswerAloneInASharedStep) {
  for (const bool before_draw : {true, false}) {
    for (const bool in_scheduler : {true, false}) {
      SCOPED_TRACE(testing::Message() << before_draw << in_scheduler);
      const Mock mock = paged_mock();
      std::vector<Session> sessions;
      std::vector<std::shared_ptr<Listed>> constraints;
      std::vector<GenerateOptions> options;
      for (int i = 0; i < 3; ++i) {
        sessions.push_back(mock.session());
        constraints.push_back(std::make_shared<Listed>(kEach));
        options.push_back(under(constraints.back()));
      }
      constraints[1]->fails_at = 4;
      constraints[1]->fails_before_draw = before_draw;
      std::vector<std::vector<int32_t>> found(3);
      std::optional<Error> raised;
      if (in_scheduler) {
        auto scheduler = Scheduler::create(mock.model);
        std::optional<Gate> gate(std::in_place, mock, *scheduler);
        std::vector<Answer> answers;
        for (size_t i = 0; i < 3; ++i) {
          RequestOptions request;
          request.generate = options[i];
          answers.push_back(*scheduler->submit(sessions[i], prompt(20), std::move(request)));
        }
        gate->open();
        for (size_t i = 0; i < 3; ++i) {
          auto token = answers[i].next();
          for (; token && *token; token = answers[i].next()) found[i].push_back(**token);
          if (!token) raised = token.error();
          EXPECT_EQ(static_cast<bool>(token), i != 1);
        }
      } else {
        std::vector<Session*> pointers;
        for (Session& session : sessions) {
          ASSERT_TRUE(session.prefill(prompt(20)));
          pointers.push_back(&session);
        }
        auto batch = mock.model.generate_batch(pointers, options);
        ASSERT_TRUE(batch) << batch.error().message;
        while (!batch->has_finished()) {
          const auto tokens = batch->next();
          ASSERT_TRUE(tokens);
          for (size_t i = 0; i < 3; ++i) {
            if ((*tokens)[i]) found[i].push_back(*(*tokens)[i]);
            EXPECT_EQ((*tokens)[i].has_value(), batch->logprobs(i) != nullptr);
          }
        }
        if (!batch->status(1)) raised = batch->status(1).error();
      }
      ASSERT_TRUE(raised);
      EXPECT_EQ(raised->code, ErrorCode::kInvalidArgument) << "it is no lack of memory that a step alone could mend";
      EXPECT_EQ(raised->message, "the caller's own");
      EXPECT_EQ(found[0].size(), 10u);
      EXPECT_EQ(found[1].size(), 4u);
      EXPECT_EQ(found[2].size(), 10u);
      for (size_t i = 0; i < 3; ++i) {
        expect_listed(found[i]);
        EXPECT_EQ(constraints[i]->taken.size(), found[i].size() + (i == 1 && !before_draw));
        EXPECT_EQ(sessions[i].position(), 20 + static_cast<int64_t>(constraints[i]->taken.size()));
        const Mock reference;
        Session alone = reference.session();
        ASSERT_TRUE(alone.prefill(prompt(20)));
        for (const int32_t token : constraints[i]->taken) ASSERT_TRUE(alone.decode(token));
        EXPECT_EQ(values(*sessions[i].prefill(prompt(4))), values(*alone.prefill(prompt(4))));
      }
    }
  }
}

TEST(TokenConstraint, ThatAllowsNothingEndsTheAnswer) {
  const Mock mock;
  Session session = mock.session();
  ASSERT_TRUE(session.prefill(prompt(20)));
  auto generation = session.generate(under(std::make_shared<Listed>(std::vector<std::vector<int32_t>>{{5}, {}})));
  ASSERT_TRUE(generation->next());
  const auto refused = generation->next();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(session.position(), 21);
  EXPECT_TRUE(session.prefill(prompt(3)));
}

TEST(Logprobs, OfAnswersAreThoseOfTheTokenThatWasTakenLast) {
  const Mock mock = paged_mock(), reference;
  auto scheduler = Scheduler::create(mock.model);
  std::vector<Session> sessions;
  std::vector<Answer> answers;
  for (int i = 0; i < 4; ++i) sessions.push_back(mock.session());
  for (Session& session : sessions) {
    RequestOptions options = answer_of(12, 0.7);
    if (&session != &sessions[3]) options.generate.logprobs = 3;
    answers.push_back(*scheduler->submit(session, prompt(30), std::move(options)));
  }
  for (size_t i = 0; i < 3; ++i) {
    answers[i].wait();  // all have been drawn by then
    EXPECT_EQ(answers[i].logprobs(), nullptr);
    Session alone = reference.session();
    ASSERT_TRUE(alone.prefill(prompt(30)));
    while (const auto token = *answers[i].next()) expect_same(answers[i].logprobs(), expected_of(alone, *token));
    EXPECT_EQ(answers[i].logprobs(), nullptr);
  }
  ASSERT_TRUE(*answers[3].next());
  EXPECT_EQ(answers[3].logprobs(), nullptr) << "nobody asked";
  RequestOptions wrong = answer_of(1);
  wrong.generate.logprobs = 21;
  EXPECT_EQ(scheduler->submit(sessions[0], prompt(3), std::move(wrong)).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace sala::test
