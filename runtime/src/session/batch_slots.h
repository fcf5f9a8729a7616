// Sessions side by side, so that one step of the engine serves all of them.
//
// An engine takes the caches of a batch as one tensor [batch, ...]. So for every cache there is one range of addresses
// with a slot for each session, and the pages of a session's cache are shown there a second time: nothing is copied,
// and the session goes on with its own addresses when it has left. Lightning states, which need not fill whole pages,
// are copied into the slot and back. The slots in use are the first ones, so a step of n sessions is a batch of n.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include "session/session_core.h"

namespace sala {

class BatchSlots {
 public:
  /// kInvalidArgument unless sessions like this can stand side by side: the engine serves more than one a step, memory
  /// grows by pages, and each cache ends where a page does.
  static Status check(const ModelData& model, const SessionCore& session);
  /// Slots for so many sessions with caches of the sizes of one, none of which has joined yet. kInvalidArgument as
  /// `check`, and for more than the engine serves.
  static Expected<std::unique_ptr<BatchSlots>> create(std::shared_ptr<const ModelData> model, int64_t most,
                                                      const SessionCore& like);
  /// Lets all sessions leave. One whose state cannot be brought back is poisoned.
  ~BatchSlots();

  /// Takes a session into the next slot. Until it leaves, only this batch may use it. kOutOfMemory if there is no room
  /// for a state of its own.
  Status join(SessionCore& session);
  /// After an error the session is poisoned. If the others cannot close the gap, they have left and are poisoned too.
  Status leave(SessionCore& session);
  bool has(const SessionCore& session) const;
  /// Whether its caches have the sizes of the slots.
  bool fits(const SessionCore& session) const;

  /// Runs the pending token of every session that has joined. One for which there is no memory leaves, as it was, and
  /// its error stands at its place in `outcomes`, which are in the order of `sessions`; so do all of them if the engine
  /// has no room for a batch of their number. After any other error all have left and are poisoned.
  Status step(std::span<SessionCore* const> sessions, std::span<Status> outcomes);

 private:
  explicit BatchSlots(std::shared_ptr<const ModelData> model) : model_(std::move(model)) {}

  Status reserve(int64_t most, const SessionCore& like);
  /// The execution of a batch of so many.
  Expected<Execution*> execution(size_t batch);
  Status run(Execution& engine);
  Status lose_all(const Error& reason);
  Status place(SessionCore& session, size_t slot);
  Status take_out(SessionCore& session, size_t slot);
  /// Hides the first so many caches.
  Status hide(SessionCore& session, size_t caches);
  /// Copies the states between a session and its slot.
  Status copy_states(SessionCore& session, size_t slot, bool into_slot);
  char* slot(size_t cache, size_t index) const;
  bool has_rows(size_t cache) const { return model_->step.caches[cache].rows != CacheRows::kAll; }

  std::shared_ptr<const ModelData> model_;
  std::vector<SessionCore::Cache> caches_;  // of all slots, in the order of the session's; the shape is of one slot
  std::vector<std::unique_ptr<Execution>> executions_;  // by batch size, less one; made when first needed
  std::vector<SessionCore*> sessions_;                  // by slot
  // Of a step.
  std::vector<int64_t> input_ids_;
  std::vector<int32_t> past_lengths_, context_lengths_, logit_rows_;
  std::vector<float> rope_cos_sin_, logits_;
};

}  // namespace sala
