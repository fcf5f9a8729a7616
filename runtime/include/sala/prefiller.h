// A prefill whose tokens arrive bit by bit, for example from a pipe, a tokenizer or another thread's queue.

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
/// `finish`. You may move the session, but it must outlive the prefiller, and you must not use it for anything
/// else until `finish` (kInvalidArgument). If you destroy the prefiller before that, tokens that did not fill a step
/// are dropped.
class Prefiller {
 public:
  /// `tokens_total`: tokens that will come, if known; it decides dense or sparse like PrefillOptions::context_length.
  /// kInvalidArgument if `context_length` cannot be.
  static Expected<Prefiller> create(Session& session, PrefillOptions options,
                                    std::optional<int64_t> tokens_total = std::nullopt);

  /// Takes any number of tokens. If it refuses them (1xx), it takes none, and you can go on.
  Status feed(std::span<const int32_t> token_ids);

  /// Runs the remaining tokens and returns the logits of the last one. kEmptyPrompt if none came.
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
