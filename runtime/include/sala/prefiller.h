// A prefill whose tokens arrive bit by bit: from a pipe, a tokenizer, another thread's queue.

#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "sala/session.h"
#include "sala/status.h"

namespace sala {

/// Cuts a stream of tokens into steps and runs each as soon as it is full. `Session::prefill` is one `feed` and one
/// `finish`. The session may move, but must outlive it and not be used for anything else until `finish`
/// (kInvalidArgument). Destroyed before that, tokens that did not fill a step are dropped.
class Prefiller {
 public:
  /// `tokens_total`: tokens that will come, if known; it decides dense or sparse like PrefillOptions::context_length.
  /// kInvalidArgument if `context_length` cannot be.
  static Expected<Prefiller> create(Session& session, PrefillOptions options,
                                    std::optional<int64_t> tokens_total = std::nullopt);

  /// Takes tokens, any number of them. Refuses them whole with 1xx, which leaves the prefiller usable.
  Status feed(std::span<const int32_t> token_ids);

  /// Runs what is left and gives the logits of the last token; kEmptyPrompt if none came.
  Expected<std::span<const float>> finish();

 private:
  friend class Session;
  Prefiller(SessionCore& core, PrefillOptions options, std::optional<int64_t> tokens_total);
  static Expected<Prefiller> create(SessionCore& core, PrefillOptions options, std::optional<int64_t> tokens_total);

  /// kSessionPoisoned, or kInvalidArgument if the session did something else meanwhile.
  Status check_session() const;
  Status run_chunk(std::span<const int32_t> token_ids);

  SessionCore* core_;
  PrefillOptions options_;
  std::optional<int64_t> tokens_total_;
  std::vector<int32_t> waiting_;  // tokens that do not fill a step yet, the session's pending token first
  int64_t tokens_fed_ = 0;
  int64_t tokens_done_ = 0;
  int64_t session_position_;  // as this object left it
  std::chrono::steady_clock::time_point start_;
};

}  // namespace sala
