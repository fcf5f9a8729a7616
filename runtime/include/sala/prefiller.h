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
  /// `tokens_total`, if known, is reported to `on_progress`, and `logit_tokens` are of these tokens. kInvalidArgument
  /// if it, `context_length` or `logit_tokens` cannot be.
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
  static Status check_logit_tokens(const PrefillOptions& options, std::optional<int64_t> tokens_total);
  /// Most tokens of the next chunk.
  size_t most_of_chunk() const;
  /// Most tokens of the next step, which gives no more logits than the engine serves.
  size_t most_of_step() const;
  /// Logits that the next step gives, if it has so many tokens.
  std::span<const int64_t> logit_tokens_of_step(size_t tokens) const;
  /// Runs chunks for as long as at least `least` tokens wait, or as many as the next chunk can take.
  Status run_chunks(size_t least);
  /// Runs a chunk, in several steps where its logits need that. Checkpoints do not depend on these steps.
  Status run_chunk(std::span<const int32_t> token_ids, int64_t context_length);
  Status run_step(std::span<const int32_t> token_ids, int64_t context_length);
  Status check_stop() const;
  /// Keeps a checkpoint behind a chunk, if one is wanted there or due.
  Status keep_due_checkpoint();
  /// Tells of a step that has run, which had these of the logits.
  void report(std::span<const int64_t> logit_tokens);
  /// Makes nothing of a stop that came while this ran.
  void use_up_stop() noexcept;

  SessionCore* core_;
  PrefillOptions options_;
  std::optional<int64_t> tokens_total_;
  std::vector<int32_t> waiting_;      // for a full step or for the end, the session's pending token first
  std::vector<int64_t> checkpoints_;  // positions ahead where steps end and one is kept, in falling order
  int64_t tokens_fed_ = 0;
  int64_t tokens_done_ = 0;
  int64_t first_position_;  // in the context, of the first token
  size_t logit_tokens_done_ = 0;
  std::vector<int32_t> rows_;  // of the step, for logit_tokens
  uint64_t session_changes_;   // as this object left it
  bool has_ended_ = false;
  bool is_told_to_stop_ = false;  // by on_progress
  bool is_decode_ = false;        // Session::decode: its token is of the answer, and Session::stop leaves it
  std::chrono::steady_clock::time_point start_;
};

}  // namespace sala
