// Answers whose sessions share steps.

#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "sala/session.h"
#include "session/batch_slots.h"

namespace sala {

/// One answer of a batch.
struct BatchMember {
  explicit BatchMember(Generation begun) : generation(std::move(begun)) {}

  Generation generation;
  Status outcome = success();    // the error that ended it
  bool is_active = true;         // until it has ended
  std::optional<int32_t> token;  // of the last step
};

/// Members join, share steps, and leave when their answers have ended. They must stay where they are meanwhile.
class DecodeBatch {
 public:
  explicit DecodeBatch(std::unique_ptr<BatchSlots> slots) : slots_(std::move(slots)) {}

  /// Takes a member in. The tokens of all that are in it have run, or none has.
  Status join(BatchMember& member);

  /// Draws a token for every member, after a step for those whose last one has not run. A member that ends, for
  /// whatever reason, leaves. One for which there is no memory (kOutOfMemory) leaves as it was. If the engine has no
  /// room for a step of so many, all do. After any other error all have left, poisoned, and it is returned.
  Status step();

  /// Ends an answer, or what the outcome says.
  void leave(BatchMember& member, Status outcome);

  /// Lets a member take steps of its own. After an error its answer has ended with it.
  void take_out(BatchMember& member);

  bool is_empty() const { return members_.empty(); }
  /// Whether a session's caches have the sizes of the slots.
  bool fits(const SessionCore& session) const { return slots_->fits(session); }

 private:
  Status run_step();
  void draw(BatchMember& member);
  /// Ends those that the slots have lost while others left.
  void end_lost();

  std::unique_ptr<BatchSlots> slots_;
  std::vector<BatchMember*> members_;
};

}  // namespace sala
