// Places of a context that a session can go back to.
//
// Rows of keys and values stay as they are while a context grows, so going back only forgets rows. A Lightning state is
// of one position. A checkpoint keeps a copy of it, on the host.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace sala {

struct Checkpoint {
  int64_t past_length = 0;                // tokens in the caches
  int64_t prompt_length = 0;              // tokens in front of the answer
  std::vector<float> logits;              // of the last token
  std::vector<std::vector<char>> states;  // caches without rows, in the order of the step
};

/// The checkpoints of one session, in the order of their positions. Forks share them.
class Checkpoints {
 public:
  explicit Checkpoints(int64_t most) : most_(most) {}

  int64_t most() const { return most_; }
  std::span<const int64_t> positions() const { return positions_; }
  /// Position of the last one, 0 if there is none.
  int64_t last() const { return positions_.empty() ? 0 : positions_.back(); }
  /// Whether a context that has grown to `position` within a prompt should keep one. So a prompt takes a
  /// number of copies that grows with the logarithm of its length.
  bool is_due(int64_t position) const {
    return most_ > 0 && position - last() >= std::max(int64_t{1}, position / most_);
  }

  /// Adds one behind the others. If that is one too many, one goes: within a prompt first, then at the end of a turn,
  /// and of these the one without which the gap is least for its distance from the end. So those that stay lie further
  /// apart the further back they are.
  void keep(std::shared_ptr<const Checkpoint> checkpoint, bool ends_turn);
  /// The last one becomes one that ends a turn.
  void end_turn() { kept_.back().ends_turn = true; }
  /// The last one at or before a position. Null if there is none.
  std::shared_ptr<const Checkpoint> before(int64_t position) const;
  /// The one at a position. Null if there is none.
  std::shared_ptr<const Checkpoint> at(int64_t position) const;
  void forget_behind(int64_t position);

 private:
  struct Kept {
    std::shared_ptr<const Checkpoint> checkpoint;
    bool ends_turn;
  };

  int64_t most_;
  std::vector<Kept> kept_;
  std::vector<int64_t> positions_;  // of kept_
};

}  // namespace sala
