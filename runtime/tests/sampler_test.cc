// The rules that need no reference; the draws are compared with a second implementation in tests/runtime.

#include "sala/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace sala::test {
namespace {

const SamplingOptions kGreedy;
const std::vector<float> kLogits = {0.5f, 2.0f, -1.0f, 2.0f, 1.0f};

TEST(Sampler, GreedyTakesTheLowestOfTheLargest) { EXPECT_EQ(*sample(kLogits, {}, kGreedy), 1); }

TEST(Sampler, PenaltyDividesPositiveAndMultipliesNegativeLogits) {
  SamplingOptions options;
  options.repetition_penalty = 4.0;
  EXPECT_EQ(*sample(kLogits, std::vector<int32_t>{1, 1}, options), 3);
  EXPECT_EQ(*sample(kLogits, std::vector<int32_t>{1, 3}, options), 4) << "2 becomes 0.5 once, not once per occurrence";
  EXPECT_EQ(*sample(std::vector<float>{-1.0f, -3.0f}, std::vector<int32_t>{0}, options), 1);
}

TEST(Sampler, TopKOfOneAndTinyTopPAreGreedy) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    EXPECT_EQ(*sample(kLogits, {}, {.temperature = 5, .top_k = 1, .top_p = 1, .repetition_penalty = 1, .seed = seed}),
              1);
    EXPECT_EQ(
        *sample(kLogits, {}, {.temperature = 5, .top_k = 0, .top_p = 1e-9, .repetition_penalty = 1, .seed = seed}), 1);
  }
}

TEST(Sampler, DrawsEveryTokenAsOftenAsItsProbability) {
  constexpr int kDraws = 20000;
  std::array<int, 5> counts{};
  for (uint64_t seed = 0; seed < kDraws; ++seed) {
    ++counts[static_cast<size_t>(
        *sample(kLogits, {}, {.temperature = 1.5, .top_k = 0, .top_p = 1, .repetition_penalty = 1, .seed = seed}))];
  }
  double total = 0;
  for (const float logit : kLogits) total += std::exp(logit / 1.5);
  for (size_t i = 0; i < counts.size(); ++i) {
    const double p = std::exp(kLogits[i] / 1.5) / total;
    EXPECT_NEAR(counts[i], kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p))) << "five standard deviations";
  }
}

TEST(Sampler, DrawsAnewAtEveryPosition) {
  const SamplingOptions options{.temperature = 50, .top_k = 0, .top_p = 1, .repetition_penalty = 1, .seed = 3};
  std::array<int, 5> counts{};
  std::vector<int32_t> context;
  for (int i = 0; i < 100; ++i) {
    ++counts[static_cast<size_t>(*sample(kLogits, context, options))];
    context.push_back(0);
  }
  for (const int count : counts) EXPECT_GT(count, 5);
}

TEST(Sampler, RefusesOptionsOutOfRange) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const SamplingOptions wrong[] = {
      {-0.1, 0, 1, 1, 0},   {kNaN, 0, 1, 1, 0},  {kInfinity, 0, 1, 1, 0}, {1, -1, 1, 1, 0},   {1, 0, 0, 1, 0},
      {1, 0, 1.01, 1, 0},   {1, 0, kNaN, 1, 0},  {1, 0, 1, 0, 0},         {1, 0, 1, -2, 0},   {1, 0, 1, kNaN, 0},
      {1, 0, 1, 1e-300, 0}, {1, 0, 1, 1e300, 0}, {1, 0, 1, 0.0099, 0},    {1, 0, 1, 100.1, 0}};
  for (const SamplingOptions& options : wrong) {
    EXPECT_EQ(sample(kLogits, {}, options).error().code, ErrorCode::kInvalidArgument);
  }
}

TEST(Sampler, TakesEveryOptionThatItDoesNotRefuse) {
  constexpr double kLeast = std::numeric_limits<double>::denorm_min();
  constexpr double kLargest = std::numeric_limits<double>::max();
  const std::vector<float> logits = {-3e36f, 3e36f, 0.0f, -INFINITY, 1.0f};
  for (const double temperature : {0.0, kLeast, 1.0, kLargest}) {
    for (const double top_p : {kLeast, 0.5, 1.0}) {
      for (const double penalty : {0.01, 1.0, 100.0}) {
        const auto token =
            sample(logits, std::vector<int32_t>{0, 1, 2, 3, 4}, {temperature, INT64_MAX, top_p, penalty, UINT64_MAX});
        ASSERT_TRUE(token) << token.error().message;
        EXPECT_LT(*token, 5);
      }
    }
  }
}

TEST(Sampler, BiasIsAddedBeforeThePenalties) {
  SamplingOptions options;
  options.logit_bias = {{4, 1.5}};
  EXPECT_EQ(*sample(kLogits, {}, options), 4);
  options.repetition_penalty = 2.0;
  EXPECT_EQ(*sample(kLogits, std::vector<int32_t>{4}, options), 1) << "2.5 / 2, not 1 / 2 + 1.5, which ties at 2";
  options = {};
  for (int32_t token = 0; token < 5; ++token) options.logit_bias[token] = -100;
  EXPECT_EQ(*sample(kLogits, {}, options), 1) << "what is taken from all changes nothing";
  options.logit_bias = {{2, 100}};
  EXPECT_EQ(*sample(std::vector<float>{0, 0, -INFINITY}, {}, options), 0) << "no bias allows what is forbidden";
}

TEST(Sampler, PenaltiesCountTheAnswerAlone) {
  SamplingOptions options;
  options.frequency_penalty = 0.6;
  const std::vector<int32_t> context = {1, 1, 1, 3, 3};
  EXPECT_EQ(*sample(kLogits, context, options, 5), 1) << "all is prompt";
  EXPECT_EQ(*sample(kLogits, context, options, 3), 1) << "2 against 2 - 1.2";
  EXPECT_EQ(*sample(kLogits, context, options, 2), 1) << "2 - 0.6 against 2 - 1.2";
  EXPECT_EQ(*sample(kLogits, context, options, 0), 4) << "2 - 1.8 and 2 - 1.2 against 1";
  options = {};
  options.presence_penalty = 1.5;
  EXPECT_EQ(*sample(kLogits, context, options, 4), 1);
  EXPECT_EQ(*sample(kLogits, context, options, 0), 4) << "2 - 1.5 once, however often";
  options.presence_penalty = -2;
  EXPECT_EQ(*sample(kLogits, std::vector<int32_t>{0}, options), 0) << "0.5 + 2";
  EXPECT_EQ(sample(kLogits, context, options, 6).error().code, ErrorCode::kInvalidArgument);
}

TEST(Sampler, MinPKeepsWhatIsThatProbable) {
  SamplingOptions options;
  options.temperature = 1.0;
  for (const auto& [min_p, least] : {std::pair(1.0, 2.0f), std::pair(std::exp(-1.0), 1.0f), std::pair(0.3, 1.0f),
                                     std::pair(std::exp(-1.5), 0.5f), std::pair(1e-300, -1.0f)}) {
    options.min_p = min_p;
    float lowest = 2.0f;
    for (options.seed = 0; options.seed < 500; ++options.seed) {
      lowest = std::min(lowest, kLogits[static_cast<size_t>(*sample(kLogits, {}, options))]);
    }
    EXPECT_EQ(lowest, least) << min_p;
  }
}

TEST(Sampler, DrawsWhatIsAllowedAlone) {
  const std::vector<float> logits(40, 0.0f);
  const auto drawn = [&](std::vector<uint32_t> words, double temperature) {
    SamplingOptions options;
    options.temperature = temperature;
    std::set<int32_t> tokens;
    for (options.seed = 0; options.seed < 400; ++options.seed)
      tokens.insert(*sala::sample(logits, {}, options, 0, words));
    return tokens;
  };
  EXPECT_EQ(drawn({1u << 31, 1u << 3}, 1), (std::set<int32_t>{31, 35}));
  EXPECT_EQ(drawn({1u << 31, 1u << 3}, 0), (std::set<int32_t>{31}));
  EXPECT_EQ(drawn({1u << 5, ~0u, ~0u}, 1), (std::set<int32_t>{5, 32, 33, 34, 35, 36, 37, 38, 39}));
  EXPECT_EQ(drawn({6}, 1), (std::set<int32_t>{1, 2})) << "what has no word may not come";
  EXPECT_EQ(drawn({}, 1).size(), 40u);
  SamplingOptions options;
  options.top_k = 1;
  options.logit_bias = {{7, 50}, {9, -1}};
  EXPECT_EQ(*sala::sample(logits, {}, options, 0, std::vector<uint32_t>{1u << 9 | 1u << 11}), 11);
  for (const std::vector<uint32_t>& none : {std::vector<uint32_t>{0, 0}, std::vector<uint32_t>{0, 1u << 8}}) {
    const auto refused = sala::sample(logits, {}, kGreedy, 0, none);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(refused.error().message.find("allows no token"), std::string::npos) << refused.error().message;
  }
}

TEST(Sampler, LogProbabilitiesAreThoseOfTheLogits) {
  const auto found = token_logprobs(kLogits, 4, 3);
  ASSERT_TRUE(found) << found.error().message;
  const double sum = std::exp(0.5) + 2 * std::exp(2) + std::exp(-1) + std::exp(1);
  EXPECT_NEAR(found->logprob, 1 - std::log(sum), 1e-14);
  ASSERT_EQ(found->top.size(), 3u);
  for (const auto& [rank, token] : {std::pair(0, 1), std::pair(1, 3), std::pair(2, 4)}) {
    EXPECT_EQ(found->top[static_cast<size_t>(rank)].first, token);
    EXPECT_NEAR(found->top[static_cast<size_t>(rank)].second,
                static_cast<double>(kLogits[static_cast<size_t>(token)]) - std::log(sum), 1e-14);
  }
  EXPECT_EQ(token_logprobs(kLogits, 0, 20)->top.size(), 5u);
  EXPECT_EQ(token_logprobs(std::vector<float>{0, -INFINITY}, 1, 0)->logprob, -INFINITY);
  const auto code = [](std::vector<float> logits, int32_t token, int64_t top) {
    const auto refused = token_logprobs(logits, token, top);
    return refused ? std::nullopt : std::optional(refused.error().code);
  };
  for (const int32_t token : {-1, 2}) EXPECT_EQ(code({0, 1}, token, 0), ErrorCode::kInvalidArgument);
  for (const int64_t top : {-1, 21}) EXPECT_EQ(code({0, 1}, 0, top), ErrorCode::kInvalidArgument);
  for (const float broken : {NAN, INFINITY}) EXPECT_EQ(code({0, broken}, 0, 1), ErrorCode::kEngineFailed);
}

TEST(Sampler, RefusesNewOptionsOutOfRange) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  SamplingOptions options;
  const auto refuses = [&](auto change, const char* message) {
    options = {};
    change();
    const auto drawn = sample(kLogits, {}, options);
    ASSERT_FALSE(drawn) << message;
    EXPECT_EQ(drawn.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(drawn.error().message.substr(0, std::string_view(message).size()), message);
  };
  for (const double wrong : {-0.1, 1.1, kNaN}) refuses([&] { options.min_p = wrong; }, "min_p is ");
  for (const double wrong : {-2.1, 2.1, kNaN}) {
    refuses([&] { options.frequency_penalty = wrong; }, "frequency_penalty is ");
    refuses([&] { options.presence_penalty = wrong; }, "presence_penalty is ");
  }
  for (const double wrong : {-100.5, 101.0, kNaN}) refuses([&] { options.logit_bias[3] = wrong; }, "logit_bias of tok");
  for (const int32_t wrong : {-1, 5, INT32_MAX}) {
    refuses([&] { options.logit_bias[wrong] = 0; }, "logit_bias has token ");
  }
}

TEST(Sampler, RefusesBrokenLogits) {
  EXPECT_EQ(sample({}, {}, kGreedy).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(sample(std::vector<float>{0.0f, NAN}, {}, kGreedy).error().code, ErrorCode::kEngineFailed);
  EXPECT_EQ(sample(std::vector<float>{0.0f, INFINITY}, {}, kGreedy).error().code, ErrorCode::kEngineFailed);
  EXPECT_EQ(sample(std::vector<float>{-INFINITY, -INFINITY}, {}, kGreedy).error().code, ErrorCode::kEngineFailed);
  EXPECT_EQ(*sample(std::vector<float>{-INFINITY, 0.0f}, {}, kGreedy), 1) << "a forbidden token is no damage";
}

}  // namespace
}  // namespace sala::test
