#include "session/checkpoints.h"

#include <tuple>
#include <utility>

namespace sala {

void Checkpoints::keep(std::shared_ptr<const Checkpoint> checkpoint, bool ends_turn) {
  positions_.push_back(checkpoint->past_length);
  kept_.push_back({std::move(checkpoint), ends_turn});
  if (static_cast<int64_t>(kept_.size()) <= most_) return;
  const auto worth = [&](size_t index) {
    const int64_t before = index == 0 ? 0 : positions_[index - 1];
    const double gap = static_cast<double>(positions_[index + 1] - before);
    return std::tuple(kept_[index].ends_turn, gap / static_cast<double>(positions_.back() - positions_[index]));
  };
  size_t least = 0;
  for (size_t i = 1; i + 1 < kept_.size(); ++i) {
    if (worth(i) < worth(least)) least = i;
  }
  kept_.erase(kept_.begin() + static_cast<ptrdiff_t>(least));
  positions_.erase(positions_.begin() + static_cast<ptrdiff_t>(least));
}

std::shared_ptr<const Checkpoint> Checkpoints::before(int64_t position) const {
  const auto count = std::upper_bound(positions_.begin(), positions_.end(), position) - positions_.begin();
  return count == 0 ? nullptr : kept_[static_cast<size_t>(count) - 1].checkpoint;
}

std::shared_ptr<const Checkpoint> Checkpoints::at(int64_t position) const {
  auto found = before(position);
  return found != nullptr && found->past_length == position ? found : nullptr;
}

void Checkpoints::forget_behind(int64_t position) {
  positions_.erase(std::upper_bound(positions_.begin(), positions_.end(), position), positions_.end());
  kept_.resize(positions_.size());
}

}  // namespace sala
