#include "session/text_scorer.h"

#include <algorithm>
#include <atomic>
#include <future>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "sala/sampler.h"

namespace sala {

namespace {

/// Below so many logits a thread costs more than it saves.
constexpr size_t kLogitsOfThread = size_t{1} << 14;

}  // namespace

TextScorer::TextScorer(std::span<const int32_t> token_ids, int64_t top)
    : token_ids_(token_ids), top_(static_cast<size_t>(top)) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  scores_.logprobs.assign(token_ids.size(), kNone);
  scores_.top_ids.assign(token_ids.size() * top_, -1);
  scores_.top_logprobs.assign(token_ids.size() * top_, kNone);
}

Status TextScorer::begin(const SessionCore& session, PrefillOptions& options) {
  constexpr int64_t kBefore = -1;
  if (!token_ids_.empty() && !session.logits().empty()) {
    SALA_RETURN_IF_ERROR(score({&kBefore, 1}, session.logits()));
  }
  // A pending token runs first, and its logits tell of the first token.
  const auto count = static_cast<int64_t>(token_ids_.size());
  for (int64_t token = session.pending_token() ? kBefore : 0; token + 1 < count; ++token) {
    options.logit_tokens.push_back(token);
  }
  options.on_logits = [this](std::span<const int64_t> tokens, std::span<const float> logits) {
    status_ = score(tokens, logits);
  };
  return success();
}

Status TextScorer::score(std::span<const int64_t> before, std::span<const float> logits) {
  const size_t vocab_size = logits.size() / before.size();
  std::atomic<size_t> next = 0;
  const auto work = [&]() -> Status {
    for (size_t i = next++; i < before.size(); i = next++) {
      SALA_RETURN_IF_ERROR(score_token(static_cast<size_t>(before[i] + 1), logits.subspan(i * vocab_size, vocab_size)));
    }
    return success();
  };
  const size_t useful = std::min(before.size(), logits.size() / kLogitsOfThread);
  const size_t threads = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, std::max<size_t>(useful, 1));
  std::vector<std::future<Status>> others;
  others.reserve(threads);
  try {
    while (others.size() + 1 < threads) others.push_back(std::async(std::launch::async, work));
  } catch (const std::system_error&) {
    // The machine gives no more threads. Fewer do it too.
  }
  Status outcome = work();
  for (std::future<Status>& other : others) {
    if (Status done = other.get(); outcome && !done) outcome = std::move(done);
  }
  return outcome;
}

Status TextScorer::score_token(size_t token, std::span<const float> logits) {
  const auto found = token_logprobs(logits, token_ids_[token], static_cast<int64_t>(top_));
  if (!found) return found.error();
  scores_.logprobs[token] = found->logprob;
  for (size_t i = 0; i < found->top.size(); ++i) {
    scores_.top_ids[token * top_ + i] = found->top[i].first;
    scores_.top_logprobs[token * top_ + i] = found->top[i].second;
  }
  return success();
}

}  // namespace sala
