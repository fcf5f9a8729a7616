// The state behind Session, Prefiller and Generation: context, caches, execution.
//
// The context is the tokens in the caches and at most one more, the pending one: drawn by `sample`, to run at the head
// of the next step. So generation runs no step whose logits nobody reads, and appending after it loses no token.

#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "sala/engine.h"
#include "sala/sampler.h"
#include "sala/session.h"
#include "sala/status.h"
#include "session/checkpoints.h"
#include "session/model_data.h"
#include "session/prompt_lookup.h"
#include "session/token_list.h"

namespace sala {

/// kInvalidArgument for options that no session of this model takes.
Status check_generate(const GenerateOptions& options, const ModelConfig& config);

class SessionCore {
 public:
  static Expected<std::unique_ptr<SessionCore>> create(std::shared_ptr<const ModelData> model,
                                                       const SessionOptions& options);

  const ModelData& model() const { return *model_; }
  std::span<const int32_t> tokens() const { return tokens_.view(); }
  int64_t position() const { return tokens_.size(); }
  /// Tokens in the caches: `position()`, less one if a token is pending.
  int64_t past_length() const { return past_length_; }
  /// Tokens in front of the answer: the context as it was when the last chunk of a prefill had run.
  int64_t prompt_length() const { return prompt_length_; }
  /// What comes from here on is the answer.
  void end_prompt() { prompt_length_ = position(); }
  int64_t max_context() const { return max_context_; }
  int64_t chunk_tokens() const { return chunk_tokens_; }
  /// How often the context has changed, so that whoever works on it notices another.
  uint64_t changes() const { return changes_; }
  std::optional<int32_t> pending_token() const;
  std::span<const float> logits() const;

  /// kSessionPoisoned if a step failed before.
  Status usable() const;
  /// kContextExceeded unless so many tokens fit behind the first `before`.
  Status check_fits(int64_t before, int64_t tokens) const;
  /// Every id must be in the vocabulary.
  Status check_tokens(std::span<const int32_t> token_ids) const;

  /// Runs one step: the pending token, if there is one, must be the first of `token_ids`. `rows` are rising indices
  /// into `token_ids`, of tokens whose logits `row_logits` has afterwards. With the last token, whose logits every step
  /// gives, they are at most `max_logit_rows` of the engine (kInvalidArgument).
  Status run(std::span<const int32_t> token_ids, int64_t context_length, std::span<const int32_t> rows = {});
  /// Logits of the tokens that the last `run` was asked for, [rows, vocab_size], until the next call that changes the
  /// session.
  std::span<const float> row_logits() const;
  /// Gives back the memory of `row_logits`.
  void drop_row_logits();
  /// The parts of `run` besides the engine's, for steps that serve several sessions. First `claim_for_step`: if it
  /// fails, the session is as it was (kOutOfMemory) or poisoned. Between the other two the session is poisoned.
  Status claim_for_step(int64_t tokens) { return claim_for_step(past_length_, tokens); }
  void begin_step();
  void end_step(std::span<const int32_t> token_ids);
  /// Where a step writes the logits of the last token.
  std::span<float> step_logits() { return logits_; }
  /// kEngineFailed and a poisoned session, for an error behind which the caches may hold anything.
  Error lose(const Error& reason);

  /// Draws the pending token. `allowed` as in sala::sample.
  Expected<int32_t> sample(const SamplingOptions& options, std::span<const uint32_t> allowed = {});
  Status reset();

  /// At most `most` tokens that may follow the context, by what followed the same tokens before.
  std::vector<int32_t> propose(int64_t most);
  /// Most drafts that the next step can run behind the pending token. They are attended to as the steps would that run
  /// one token, so a step ends where the context becomes sparse.
  int64_t most_drafts() const;
  /// Whether the pending token was the next draft of an earlier step, so that its logits are here.
  bool has_run_pending() const;
  /// Runs the pending token, unless it has run as a draft, and behind it at most `most_drafts` drafts.
  /// The context and its logits are afterwards as without drafts, and so they are after an error (kOutOfMemory).
  /// Returns how many drafts have run: at most `most_drafts`, and none where there is no memory for them.
  Expected<int64_t> run_pending(std::span<const int32_t> drafts);
  /// Makes the states those of the context where drafts have changed them. Whoever reads or writes caches calls it
  /// before. After an error the session is as it was (kOutOfMemory) or poisoned.
  Status settle();
  bool is_settled() const { return state_length_ == past_length_; }
  /// Bytes of states that drafts will take.
  int64_t bytes_for_drafts() const;

  /// A session with the same context, which shares the memory of what neither changes. This one is settled.
  Expected<std::unique_ptr<SessionCore>> fork() const;

  /// Bytes that the caches take besides what is theirs alone when so many tokens more have run.
  int64_t bytes_for(int64_t tokens) const;
  /// kOutOfMemory if the memory is known to have no room for so many tokens more.
  Status require_room(int64_t tokens) const;
  /// Makes the rows that steps from `past_length` on write for `tokens` tokens, and the states, this session's own.
  Status claim(int64_t past_length, int64_t tokens);

  const Checkpoints& checkpoints() const { return checkpoints_; }
  /// Keeps a checkpoint of `past_length` tokens, unless there is one. A state that was saved with a pending token has
  /// no logits of the token before it, and no checkpoint is kept there.
  Status keep_checkpoint(bool ends_turn);
  /// The checkpoint that is kept at a position, or one for this call alone where all tokens have run. kInvalidArgument,
  /// saying where checkpoints are, if there is neither.
  Expected<std::shared_ptr<const Checkpoint>> checkpoint_at(int64_t position) const;
  /// Goes back to the last checkpoint at or before a position, and returns where that is.
  Expected<int64_t> rewind(int64_t position);

  std::atomic<bool>& stop_requested() { return stop_requested_; }

  /// The buffers of the caches in the order of `model().step.caches`, with their shapes.
  struct Cache {
    Buffer buffer;
    Shape shape;
  };
  std::span<const Cache> caches() const { return caches_; }
  std::span<Cache> caches() { return caches_; }
  /// Rows of a cache that belong to the tokens behind the first `from` of `to`.
  CacheSpec::Rows rows(size_t cache, int64_t from, int64_t to) const {
    return model_->step.caches[cache].written(model_->config, caches_[cache].shape, from, to);
  }

  /// Takes over a context whose cache contents the caller has written. `logits` is empty if a token is pending.
  Status restore(std::span<const int32_t> tokens, int64_t past_length, int64_t prompt_length,
                 std::vector<float> logits);

 private:
  SessionCore(std::shared_ptr<const ModelData> model, int64_t max_context, int64_t chunk_tokens,
              int64_t max_checkpoints, TokenList tokens)
      : model_(std::move(model)),
        max_context_(max_context),
        chunk_tokens_(chunk_tokens),
        tokens_(std::move(tokens)),
        checkpoints_(max_checkpoints) {}
  /// A session with caches of which nothing is claimed.
  static Expected<std::unique_ptr<SessionCore>> allocate(std::shared_ptr<const ModelData> model, int64_t max_context,
                                                         int64_t chunk_tokens, int64_t max_checkpoints);
  /// Allocates the caches and makes their execution.
  Status bind();
  /// Takes back everything that is claimed.
  Status empty();
  /// Sets logit_rows_: `rows`, and the last token if it is not among them. Makes room for their logits.
  Status choose_rows(int64_t tokens, std::span<const int32_t> rows);
  Status reserve_rows();
  /// Where the engine writes the logits of the chosen rows.
  std::span<float> step_rows();
  /// Claims what a step on so many tokens behind the first `past_length` writes.
  Status claim_for_step(int64_t past_length, int64_t tokens);
  /// Runs a step behind the first `past_length` tokens, with the logits of the chosen rows.
  Status run_step(int64_t past_length, std::span<const int32_t> token_ids, int64_t context_length,
                  std::span<float> logits);
  /// Forgets the tokens behind the first `to`.
  void shrink(int64_t to);

  /// Whether steps of one token attend to both tokens, which are named by their index, densely or both sparsely.
  bool are_alike(int64_t first, int64_t last) const;
  /// Tokens of the states when the next step begins.
  int64_t states_to_begin_with() const;
  Status make_copies();
  Status copy_states(bool back);
  /// Drops what has run ahead. The states may then lack tokens of the context.
  Status bring_back();
  /// Goes on to the next draft, which is the pending token.
  void step_ahead();
  /// One step on the tokens that the states lack, the pending one and drafts. After kOutOfMemory the session is as it
  /// was.
  Status run_with(std::span<const int32_t> drafts);
  /// Claims what a session without tokens has.
  Status begin();
  Status restore(const Checkpoint& checkpoint);
  /// A copy of the states and logits of `past_length` tokens, of which there are logits.
  Expected<std::shared_ptr<const Checkpoint>> make_checkpoint() const;
  /// Sets all but the tokens and caches.
  void set(int64_t past_length, int64_t prompt_length, std::vector<float> logits);

  std::shared_ptr<const ModelData> model_;
  int64_t max_context_;
  int64_t chunk_tokens_;
  std::vector<Cache> caches_;
  std::unique_ptr<Execution> execution_;  // refers to caches_
  TokenList tokens_;
  int32_t pending_ = 0;  // the last of tokens_, if one is pending
  int64_t past_length_ = 0;
  int64_t prompt_length_ = 0;
  uint64_t changes_ = 0;
  Checkpoints checkpoints_;
  std::vector<float> logits_;  // [vocab_size] after the last step
  bool has_logits_ = false;    // that they are of `past_length_` tokens
  bool poisoned_ = false;
  std::atomic<bool> stop_requested_ = false;
  std::vector<int64_t> input_ids_;   // [tokens] of the step
  std::vector<float> rope_cos_sin_;  // [tokens, head_dim] of the step
  std::vector<int32_t> logit_rows_;  // [rows] of the step, the last token's at the end
  std::vector<float> row_logits_;    // at least [rows, vocab_size], if a step had more than one
  size_t wanted_rows_ = 0;           // of logit_rows_, that `run` was asked for

  int64_t state_length_ = 0;        // tokens of the states: more than past_length_ when ahead, else fewer or equal
  int64_t copy_length_ = -1;        // tokens of the copies, -1 if they are of another text
  std::vector<Buffer> copies_;      // of the caches without rows, once there were drafts
  std::vector<int32_t> drafts_;     // that the last step had, their logits behind the first row of row_logits_
  std::span<const int32_t> ahead_;  // those of drafts_ behind `past_length_`, which may still be drawn
  PromptLookup lookup_;
};

}  // namespace sala
