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

/// Cuts a stream of tokens into steps and runs them. `Session::prefill` is one `feed` and one `finish`, and a prompt
/// gives the same steps and logits however it is cut into feeds.
///
/// All tokens of a prompt are attended densely if the context has fewer than `ModelConfig::dense_len` tokens at the end
/// of the prompt, else sparsely. So tokens wait until the context is that long or `finish` ends the prompt. From then
/// on every step runs as soon as it is full. Waiting tokens are not in the session: `position` does not count them,
/// `save` does not write them, and a prefiller that is destroyed before `finish` drops them.
///
/// The session may move, but must outlive it and not be used for anything else until `finish` (kInvalidArgument). After
/// kStopped, a failed step or an exception of `on_progress` the prefiller has ended, and the session is at the border
/// of the last step that ran.
class Prefiller {
 public:
  /// `tokens_total`, if known, is only reported to `on_progress`. kInvalidArgument if it or `context_length` cannot be.
  static Expected<Prefiller> create(Session& session, PrefillOptions options,
                                    std::optional<int64_t> tokens_total = std::nullopt);

  /// Takes any number of tokens. If it refuses them (1xx), it takes none, and you can go on.
  Status feed(std::span<const int32_t> token_ids);

  /// Ends the prompt: runs what is left and gives the logits of the last token. kEmptyPrompt if no token came.
  Expected<std::span<const float>> finish();

 private:
  friend class SchedulerThread;
  friend class Session;
  Prefiller(SessionCore& core, PrefillOptions options, std::optional<int64_t> tokens_total);
  static Expected<Prefiller> create(SessionCore& core, PrefillOptions options, std::optional<int64_t> tokens_total);

  /// kSessionPoisoned, or kInvalidArgument if this has ended or the session did something else meanwhile.
  Status check_usable() const;
  /// Tokens of the context with those that wait.
  int64_t length() const;
  /// Most tokens of the next step.
  size_t most_of_step() const;
  /// Runs steps for as long as at least `least` tokens wait, or as many as the next step can take.
  Status run_chunks(size_t least);
  Status run_chunk(std::span<const int32_t> token_ids, int64_t context_length);
  /// Makes nothing of a stop that came while this ran.
  void use_up_stop() noexcept;

  SessionCore* core_;
  PrefillOptions options_;
  std::optional<int64_t> tokens_total_;
  std::vector<int32_t> waiting_;      // for a full step or for the end, the session's pending token first
  std::vector<int64_t> checkpoints_;  // positions ahead where steps end and one is kept, in falling order
  int64_t tokens_fed_ = 0;
  int64_t tokens_done_ = 0;
  uint64_t session_changes_;  // as this object left it
  bool has_ended_ = false;
  bool is_told_to_stop_ = false;  // by on_progress
  bool is_decode_ = false;        // Session::decode: its token is of the answer, and Session::stop leaves it
  std::chrono::steady_clock::time_point start_;
};

}  // namespace sala
