// How probable the model finds the tokens of a text, found while a prefill runs them.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "sala/session.h"
#include "sala/status.h"
#include "session/session_core.h"

namespace sala {

/// Scores the tokens of one text as their logits come, with the `top` likeliest at each place. The tokens must outlive
/// it, and it the prefill.
class TextScorer {
 public:
  TextScorer(std::span<const int32_t> token_ids, int64_t top);
  TextScorer(const TextScorer&) = delete;
  TextScorer& operator=(const TextScorer&) = delete;

  /// Scores the first token by the logits that a session has, and lets a prefiller with these options tell of the
  /// others. It has been made for this text, and all tokens are in the vocabulary.
  Status begin(const SessionCore& session, PrefillOptions& options);

  /// The error of the logits so far. The prefill should stop then.
  const Status& outcome() const { return status_; }

  TokenScores take() { return std::move(scores_); }

 private:
  /// Scores the tokens behind those with these logits, [before, vocab_size], where -1 stands before the first.
  Status score(std::span<const int64_t> before, std::span<const float> logits);
  Status score_token(size_t token, std::span<const float> logits);

  std::span<const int32_t> token_ids_;
  size_t top_;
  TokenScores scores_;
  Status status_ = success();
};

}  // namespace sala
