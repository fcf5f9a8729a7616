// One sequence: its tokens, its caches, the logits of its last token.

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sala/sampler.h"
#include "sala/status.h"
#include "sala/token_constraint.h"

namespace sala {

class DecodeBatch;
class Generation;
class Model;
class Prefiller;
class Scheduler;
class SchedulerThread;
class SessionCore;
class Speculation;
class StateTarget;

constexpr int64_t kDefaultMaxCheckpoints = 8;
constexpr int64_t kMostDraftTokens = 64;

struct SessionOptions {
  std::optional<int64_t> max_context = {};      // in tokens, by default Model::default_max_context()
  std::optional<int64_t> chunk_tokens = {};     // tokens per prefill step, by default the engine's
  std::optional<int64_t> max_checkpoints = {};  // by default kDefaultMaxCheckpoints; 0 keeps none
};

struct PrefillProgress {
  int64_t tokens_done;                  // tokens of this call that have run
  std::optional<int64_t> tokens_total;  // tokens of this call, none for a stream of unknown length
  double seconds;                       // seconds since the call began
};

struct PrefillOptions {
  /// Only for one prompt that is cut over several calls, to read logits in between: the length of the context after the
  /// last of them. By default the prompt ends with this call, or with `Prefiller::finish`.
  std::optional<int64_t> context_length;
  /// Called after every chunk. Return false to stop the prefill there.
  std::function<bool(const PrefillProgress&)> on_progress;
  /// Tokens whose logits are wanted besides those of the last, rising. 0 is the first token of this call.
  std::vector<int64_t> logit_tokens = {};
  /// Called after each step that has some of `logit_tokens`, before `on_progress`, with the logits of these, fp32
  /// [tokens, vocab_size], which are valid during the call. A step has no more of them than
  /// `EngineLimits::max_logit_rows`. An exception ends the prefill behind this step.
  std::function<void(std::span<const int64_t> tokens, std::span<const float> logits)> on_logits = {};
};

struct ScoreOptions {
  int64_t top = 0;  // likeliest tokens at each place, 0 to kMostLogprobs
  /// As in PrefillOptions.
  std::optional<int64_t> context_length = {};
  std::function<bool(const PrefillProgress&)> on_progress = {};
};

/// How probable the model found each token of a text, given all tokens before it.
struct TokenScores {
  /// [tokens], natural logarithms of probabilities. NaN for the first token of a context.
  std::vector<double> logprobs;
  /// [tokens, top], the likeliest tokens at each place, as in `token_logprobs`. -1 where there are none.
  std::vector<int32_t> top_ids;
  /// [tokens, top], the log-probabilities of `top_ids`. NaN where there are none.
  std::vector<double> top_logprobs;
};

struct GenerateOptions {
  int64_t max_new_tokens = 256;
  SamplingOptions sampling;
  /// Tokens that end the text. By default the model's eos tokens.
  std::optional<std::vector<int32_t>> stop_tokens;
  /// Of each token of the answer, its log-probability and the so many likeliest tokens with theirs, 0 to kMostLogprobs:
  /// see `token_logprobs`. None are computed by default.
  std::optional<int64_t> logprobs = {};
  /// Which tokens may come. By default every token may.
  std::shared_ptr<TokenConstraint> constraint = {};
  /// Most tokens to draft for a step, 1 to kMostDraftTokens. Drafts are what followed the same tokens earlier in the
  /// context. One step runs them with the token before them, so those that are then drawn take no step of their own.
  /// The answer is the same as without. None are drafted by default.
  std::optional<int64_t> speculation = {};
};

/// What drafts did for an answer.
struct SpeculationCounts {
  int64_t tokens = 0;    // drawn, a stop token included
  int64_t drafted = 0;   // drafts that steps ran
  int64_t accepted = 0;  // of those, the ones that were drawn and so saved a step

  /// Tokens for each step, 1 without drafts.
  double tokens_per_step() const {
    return tokens == accepted ? 1 : static_cast<double>(tokens) / static_cast<double>(tokens - accepted);
  }
};

/// One context with its caches. What you generate, sample or decode is the answer, which begins where the last prefill
/// ended. `frequency_penalty` and `presence_penalty` count its tokens alone. Use it from one thread at a time, except
/// `stop`. You may move it, and may then only destroy or assign to the session that you moved from.
///
/// A session takes the memory of the tokens that it holds, and grows by steps up to `max_context`.
///
/// Wrong arguments (1xx) leave a session as it was, and so does a step for which there is no memory (kOutOfMemory). A
/// step that fails (kEngineFailed, or 2xx if a file of the weights changed) poisons it: its caches hold neither the old
/// nor the new context, and only `reset` or destruction are valid.
class Session {
 public:
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  /// Number of tokens in the context, the last generated one included.
  int64_t position() const;
  /// Number of tokens that have run: `position`, less one between `sample` and the next step.
  int64_t past_length() const;
  int64_t max_context() const;
  int64_t chunk_tokens() const;
  std::span<const int32_t> tokens() const;
  /// Logits of the last token, fp32 [vocab_size]. Empty before the first prefill and between `sample` and the next
  /// step. Valid until the next call that changes the session.
  std::span<const float> logits() const;

  /// Appends tokens to the context, chunk by chunk, and returns the logits of the last one.
  ///
  /// A prompt that is empty (kEmptyPrompt), does not fit (kContextExceeded) or has a token outside the vocabulary
  /// (kTokenOutOfRange) is refused whole. Stopped by `on_progress` or `stop` (kStopped), the session holds the chunks
  /// that had run, as `position` tells, and goes on from there with the rest of the prompt. The same holds if memory
  /// ends in the middle (kOutOfMemory). Where the engine knows its memory, a prompt that does not fit is refused whole.
  Expected<std::span<const float>> prefill(std::span<const int32_t> token_ids, const PrefillOptions& options = {});

  /// Appends tokens to the context as `prefill` does, and tells how probable the model found each of them, as
  /// `token_logprobs` does. The first token's probability comes from the logits before this call. kInvalidArgument for
  /// a `top` outside 0 to kMostLogprobs, kEngineFailed if a logit is NaN. If it ends early, the session holds the steps
  /// that had run, as after `prefill`.
  Expected<TokenScores> score(std::span<const int32_t> token_ids, const ScoreOptions& options = {});

  /// Appends one token to the answer and returns its logits.
  Expected<std::span<const float>> decode(int32_t token_id);

  /// Samples the next token from `logits` and appends it. It runs with the next step, whichever call that is.
  /// kNoLogits before the first prefill and after another `sample`, kContextExceeded if the context is full.
  Expected<int32_t> sample(const SamplingOptions& options);

  /// Generates tokens one by one. You may move the session, but it must outlive the result.
  Expected<Generation> generate(GenerateOptions options);

  /// Writes everything that `Model::restore` needs to continue with the same logits. The file appears whole or not at
  /// all, and replaces one of the same name, whose mode it keeps, only when it is complete. kStateUnwritable, with the
  /// reason, leaves what was there untouched.
  Status save(StateTarget& target) const;
  /// The same, on a target that is opened for this save.
  Status save(const std::filesystem::path& path) const;

  /// Writes the tokens from `first` to `last`, of those that have run, and the keys and values which they added. Such
  /// parts, one behind the other, and one of `save_checkpoint` are what `Model::restore_parts` takes. The file appears
  /// as that of `save` does, and depends on nothing but its content. Returns the SHA-256 in its header, in hexadecimal
  /// digits: of the file in which these digits are zeros. kInvalidArgument unless 0 <= first < last <= past_length.
  Expected<std::string> save_rows(const std::filesystem::path& path, int64_t first, int64_t last) const;
  /// Writes the checkpoint at `position` with the tokens from `first` on and their keys and values, as `save_rows`
  /// does. Where the session stands, it need not keep one, but must have had logits. kInvalidArgument, saying where
  /// checkpoints are, if there is none at `position`, and unless 0 <= first <= position.
  Expected<std::string> save_checkpoint(const std::filesystem::path& path, int64_t first, int64_t position) const;

  /// kOutOfMemory if the engine knows that its memory has no room for so many tokens more. `prefill` asks this itself;
  /// ask before a long stream, or for an answer.
  Status require_room(int64_t tokens) const;

  /// Makes a session with the same context and options. The two share the memory of the keys and values that both have,
  /// and each takes its own from here on. What you do with one changes nothing in the other.
  Expected<Session> fork() const;

  /// Keeps a checkpoint here, if the session keeps any. A token that was sampled and has not run is not in it.
  Status checkpoint();

  /// Positions of the checkpoints, in order, valid until the next call that changes the session. The session keeps one
  /// where a prompt ends, where the next one begins, and some within a long prompt. A checkpoint takes the Lightning
  /// states' bytes of the host's memory, 48 MiB for 9B. When there are more than `max_checkpoints`, those within
  /// prompts go first, and the further back, the fewer are kept.
  std::span<const int64_t> checkpoints() const;

  /// Goes back to the last checkpoint at or before `position`, and returns its position: the tokens behind it are
  /// forgotten. A token that was sampled last can be taken back without one. kInvalidArgument, naming the
  /// nearest, if no checkpoint lies there.
  Expected<int64_t> rewind(int64_t position);

  /// Forgets the context and its checkpoints. A poisoned session is usable again.
  Status reset();

  /// Ends a prefill that runs after its current chunk, or else the next one before its first (kStopped). Each stop ends
  /// at most one: a prefill that finishes nevertheless uses it up, and `reset` forgets it. A call that is refused
  /// leaves it, and so do `decode`, `sample` and `generate`, which never look at it. Any thread may call this.
  void stop() noexcept;

 private:
  friend class Model;
  friend class Prefiller;
  friend class Scheduler;
  explicit Session(std::unique_ptr<SessionCore> core);
  std::unique_ptr<SessionCore> core_;
};

enum class FinishReason { kNone, kStopToken, kMaxNewTokens, kMaxContext, kCancelled };

/// `none`, `stop_token`, `max_new_tokens`, `max_context` or, of a request to a Scheduler, `cancelled`.
std::string_view name_of(FinishReason reason);

/// Tokens of one `Session::generate`, sampled when you ask for them.
class Generation {
 public:
  Generation(Generation&&) noexcept;
  Generation& operator=(Generation&&) noexcept;
  ~Generation();

  /// Returns the next token, or nothing when the generation is finished. A stop token joins the context but is not
  /// returned.
  Expected<std::optional<int32_t>> next();

  /// The reason why `next` returned nothing.
  FinishReason finish_reason() const { return finish_reason_; }

  /// Those of the token that `next` returned last, valid until the next call of it. Null if it returned none, or if
  /// they were not asked for.
  const TokenLogprobs* logprobs() const { return logprobs_ ? &*logprobs_ : nullptr; }

  /// What drafts have done so far.
  SpeculationCounts speculation() const;

 private:
  friend class DecodeBatch;
  friend class SchedulerThread;
  friend class Session;
  Generation(SessionCore& core, GenerateOptions options);
  /// False, with the reason, once there is nothing more to draw. Forgets the log-probabilities of the token before.
  bool goes_on();
  /// Whether the next step has drafts, or has run as one of them, so that no batch can take it.
  bool wants_own_step();
  /// Runs the token that was drawn last.
  Status run_pending();
  /// Most drafts of which the answer can still use every one.
  int64_t most_drafts() const { return options_.max_new_tokens - new_tokens_ - 1; }
  /// Draws a token from the logits.
  Expected<std::optional<int32_t>> draw();
  /// As `SessionCore::sample`, under the constraint.
  Expected<int32_t> sample();

  SessionCore* core_;
  GenerateOptions options_;
  int64_t new_tokens_ = 0;
  std::optional<TokenLogprobs> logprobs_;
  std::unique_ptr<Speculation> speculation_;  // if it was asked for
  FinishReason finish_reason_ = FinishReason::kNone;
};

}  // namespace sala
