// Session::score: how probable the model found each token of a text.

#include <algorithm>
#include <atomic>
#include <future>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "sala/prefiller.h"
#include "sala/sampler.h"
#include "sala/session.h"
#include "session/session_core.h"

namespace sala {

namespace {

/// Below so many logits a thread costs more than it saves.
constexpr size_t kLogitsOfThread = size_t{1} << 14;

/// Scores the tokens of one text as logits come.
class Scorer {
 public:
  Scorer(std::span<const int32_t> token_ids, int64_t top) : token_ids_(token_ids), top_(static_cast<size_t>(top)) {
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    scores_.logprobs.assign(token_ids.size(), kNone);
    scores_.top_ids.assign(token_ids.size() * top_, -1);
    scores_.top_logprobs.assign(token_ids.size() * top_, kNone);
  }

  /// Scores the tokens behind those with these logits, [before, vocab_size], where -1 stands before the first.
  Status score(std::span<const int64_t> before, std::span<const float> logits) {
    const size_t vocab_size = logits.size() / before.size();
    std::atomic<size_t> next = 0;
    const auto work = [&]() -> Status {
      for (size_t i = next++; i < before.size(); i = next++) {
        SALA_RETURN_IF_ERROR(
            score_token(static_cast<size_t>(before[i] + 1), logits.subspan(i * vocab_size, vocab_size)));
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

  TokenScores take() { return std::move(scores_); }

 private:
  Status score_token(size_t token, std::span<const float> logits) {
    const auto found = token_logprobs(logits, token_ids_[token], static_cast<int64_t>(top_));
    if (!found) return found.error();
    scores_.logprobs[token] = found->logprob;
    for (size_t i = 0; i < found->top.size(); ++i) {
      scores_.top_ids[token * top_ + i] = found->top[i].first;
      scores_.top_logprobs[token * top_ + i] = found->top[i].second;
    }
    return success();
  }

  std::span<const int32_t> token_ids_;
  size_t top_;
  TokenScores scores_;
};

}  // namespace

Expected<TokenScores> Session::score(std::span<const int32_t> token_ids, const ScoreOptions& options) {
  if (options.top < 0 || options.top > kMostLogprobs) {
    return error(ErrorCode::kInvalidArgument, "top is ", options.top, ", expected 0 to ", kMostLogprobs);
  }
  Status outcome = success();
  PrefillOptions prefill{options.context_length, {}};
  prefill.on_progress = [&](const PrefillProgress& progress) {
    return outcome && (!options.on_progress || options.on_progress(progress));
  };
  const auto count = static_cast<int64_t>(token_ids.size());
  auto prefiller = Prefiller::create(*core_, std::move(prefill), count);
  if (!prefiller) return prefiller.error();
  SALA_RETURN_IF_ERROR(core_->check_fits(core_->position(), count));
  SALA_RETURN_IF_ERROR(core_->check_tokens(token_ids));
  Scorer scorer(token_ids, options.top);
  constexpr int64_t kBefore = -1;
  if (!token_ids.empty() && !core_->logits().empty()) {
    SALA_RETURN_IF_ERROR(scorer.score({&kBefore, 1}, core_->logits()));
  }
  // A pending token runs first, and its logits tell of the first token.
  for (int64_t token = core_->pending_token() ? kBefore : 0; token + 1 < count; ++token) {
    prefiller->options_.logit_tokens.push_back(token);
  }
  prefiller->options_.on_logits = [&](std::span<const int64_t> tokens, std::span<const float> logits) {
    outcome = scorer.score(tokens, logits);
  };
  Status ran = prefiller->feed(token_ids);
  if (ran) {
    if (const auto logits = prefiller->finish(); !logits) ran = logits.error();
  }
  if (!outcome) return outcome.error();
  if (!ran) return ran.error();
  return scorer.take();
}

}  // namespace sala
