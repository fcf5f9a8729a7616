// What the tokens of a text must score: sums over logits of tokens that a session reads one by one.

#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "mock_engine.h"

namespace sala::test {

/// ln(exp(logit) / sum of exp), of each token, in fp64 and without a common factor: the mock's logits differ by less
/// than exp can hold where they are divided.
inline std::vector<double> log_softmax(std::span<const float> logits) {
  long double sum = 0;
  const float most = *std::max_element(logits.begin(), logits.end());
  for (const float logit : logits) sum += std::exp(static_cast<long double>(logit) - most);
  std::vector<double> result;
  for (const float logit : logits) result.push_back(static_cast<double>(logit - most - std::log(sum)));
  return result;
}

/// What `ids` behind the context of a session must score.
class Wanted {
 public:
  Wanted(Session& session, std::span<const int32_t> ids, size_t top) : top_(top) {
    const int64_t end = session.position() + static_cast<int64_t>(ids.size());
    std::vector<float> logits = values(session.logits());
    if (session.past_length() < session.position()) {  // the pending token runs alone
      Session before = *session.fork();
      const int32_t pending = session.tokens().back();
      EXPECT_TRUE(before.rewind(session.past_length()));
      logits = values(*before.prefill({&pending, 1}, {.context_length = end, .on_progress = {}}));
    }
    for (const int32_t id : ids) {
      add(logits, id);
      logits = values(*session.prefill({&id, 1}, {.context_length = end, .on_progress = {}}));
    }
  }

  void check(const TokenScores& scores) const {
    ASSERT_EQ(scores.logprobs.size(), logprobs_.size());
    ASSERT_EQ(scores.top_ids.size(), logprobs_.size() * top_);
    ASSERT_EQ(scores.top_logprobs.size(), logprobs_.size() * top_);
    for (size_t i = 0; i < logprobs_.size(); ++i) expect_near(scores.logprobs[i], logprobs_[i]);
    EXPECT_EQ(scores.top_ids, top_ids_);
    for (size_t i = 0; i < top_ids_.size(); ++i) expect_near(scores.top_logprobs[i], top_logprobs_[i]);
  }

 private:
  static void expect_near(double found, double wanted) {
    if (std::isnan(wanted)) {
      EXPECT_TRUE(std::isnan(found));
    } else {
      EXPECT_NEAR(found, wanted, 1e-9 * (1 + std::abs(wanted)));
    }
  }

  void add(const std::vector<float>& logits, int32_t id) {
    const bool is_first = logits.empty();
    const auto all = is_first ? std::vector<double>(kVocabSize, std::nan("")) : log_softmax(logits);
    logprobs_.push_back(all[static_cast<size_t>(id)]);
    std::vector<int32_t> order(kVocabSize);
    std::iota(order.begin(), order.end(), 0);
    if (!is_first) {
      std::ranges::stable_sort(
          order, [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
    }
    for (size_t i = 0; i < top_; ++i) {
      top_ids_.push_back(is_first ? -1 : order[i]);
      top_logprobs_.push_back(all[static_cast<size_t>(order[i])]);
    }
  }

  size_t top_;
  std::vector<double> logprobs_, top_logprobs_;
  std::vector<int32_t> top_ids_;
};

}  // namespace sala::test
