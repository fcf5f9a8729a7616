// Answers of several sessions, drawn together: one step of the engine serves all of them.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "sala/session.h"
#include "sala/status.h"

namespace sala {

/// Tokens of `Model::generate_batch`. A step reads the weights once, however many sessions it serves, so that a batch
/// gives more tokens a second than its sessions one after the other. Contexts may have any lengths.
///
/// You may move the sessions, but they must outlive this object, and nobody may use them before they have finished or
/// this object is gone. A session that has finished is free at once.
class BatchGeneration {
 public:
  BatchGeneration(BatchGeneration&&) noexcept;
  BatchGeneration& operator=(BatchGeneration&&) noexcept;
  ~BatchGeneration();

  /// Returns the next token of each session, in the order of the sessions, and nothing for those that have finished or
  /// failed, as `Generation::next` does. A session for which there is no memory (kOutOfMemory) leaves the batch as it
  /// was, and `status` tells; the others go on. If the engine has no room for a step of so many, all leave so. After an
  /// error of the engine (kEngineFailed) all that had not finished are poisoned.
  Expected<std::vector<std::optional<int32_t>>> next();

  /// Ends the answer of a session here, behind a stop string for example. The session is free then. Returns its status.
  Status end(size_t session);

  /// True when `next` has no more tokens.
  bool has_finished() const;
  /// The reason why a session has finished; kNone while it goes on, and if it failed.
  FinishReason finish_reason(size_t session) const;
  /// As `Generation::logprobs`, of the token that the last `next` returned for a session.
  const TokenLogprobs* logprobs(size_t session) const;
  /// The error that ended a session.
  const Status& status(size_t session) const;

 private:
  friend class Model;
  struct Parts;
  explicit BatchGeneration(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace sala
