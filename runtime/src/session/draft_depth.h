// How many tokens to draft for a step, by how many of the drafts before were right.

#pragma once

#include <algorithm>
#include <cstdint>

namespace sala {

/// It looks at no clock, so an answer takes the same steps wherever it is drawn.
///
/// Drafts that all were right are doubled the next time, up to `most`, and else are as many as were right. Where none
/// was, the next steps have no drafts: one, and twice as many each time this happens again, up to 64. So a text without
/// repetition, where every draft is wrong, soon has drafts in one step of 65.
class DraftDepth {
 public:
  explicit DraftDepth(int64_t most) : most_(most), depth_(std::min<int64_t>(most, 4)) {}

  /// Begins a step, and tells how many tokens to draft for it. 0 in a pause.
  int64_t next() {
    if (pause_ == 0) return depth_;
    --pause_;
    return 0;
  }

  /// Hears that the first `accepted` of `drafted` tokens were right.
  void learn(int64_t drafted, int64_t accepted) {
    if (drafted == 0) return;
    if (accepted == 0) {
      pause_ = next_pause_;
      next_pause_ = std::min<int64_t>(2 * next_pause_, kLongestPause);
    } else {
      next_pause_ = 1;
    }
    const int64_t wanted = accepted == drafted ? std::max(depth_, 2 * drafted) : accepted;
    depth_ = std::clamp<int64_t>(wanted, 1, most_);
  }

 private:
  static constexpr int64_t kLongestPause = 64;  // steps

  int64_t most_;
  int64_t depth_;
  int64_t pause_ = 0;  // steps without drafts that are still to come
  int64_t next_pause_ = 1;
};

}  // namespace sala
