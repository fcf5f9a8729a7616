#include "session/prompt_lookup.h"

#include <algorithm>
#include <bit>

namespace sala {

namespace {

constexpr size_t kLeastSlots = 1024;

/// Tokens that the text has in common before `place` and before its end, at most kLongestMatch.
int64_t match_length(std::span<const int32_t> text, int64_t place) {
  const int64_t most = std::min(place, PromptLookup::kLongestMatch);
  const auto at = [&](int64_t index) { return text[static_cast<size_t>(index)]; };
  int64_t length = 0;
  while (length < most && at(place - 1 - length) == at(std::ssize(text) - 1 - length)) ++length;
  return length;
}

}  // namespace

size_t PromptLookup::slot(std::span<const int32_t> text, int64_t last) const {
  uint64_t hash = 0;
  for (int64_t i = last + 1 - kLeastMatch; i <= last; ++i) {
    hash = (hash + static_cast<uint32_t>(text[static_cast<size_t>(i)]) + 1) * 0x9e3779b97f4a7c15;
  }
  return hash >> (64 - std::countr_zero(latest_.size()));
}

void PromptLookup::add(std::span<const int32_t> text, int64_t last) {
  if (last + 1 < kLeastMatch) return previous_.push_back(kNone);
  int32_t& latest = latest_[slot(text, last)];
  previous_.push_back(latest);
  latest = static_cast<int32_t>(last);
}

void PromptLookup::extend(std::span<const int32_t> text) {
  if (text.size() > latest_.size()) {
    latest_.assign(std::bit_ceil(std::max(text.size(), kLeastSlots)), kNone);
    previous_.clear();
  }
  for (int64_t last = size(); last < std::ssize(text); ++last) add(text, last);
}

void PromptLookup::cut(std::span<const int32_t> text, int64_t size) {
  while (this->size() > size) {
    const int64_t last = this->size() - 1;
    if (last + 1 >= kLeastMatch) latest_[slot(text, last)] = previous_.back();
    previous_.pop_back();
  }
}

std::vector<int32_t> PromptLookup::drafts(std::span<const int32_t> text, int64_t most) const {
  int64_t longest = kLeastMatch - 1, found = 0;
  int32_t place = previous_.empty() ? kNone : previous_.back();
  for (int64_t i = 0; i < kMostCandidates && place != kNone && longest < kLongestMatch; ++i) {
    if (const int64_t length = match_length(text, place + 1); length > longest) {
      longest = length;
      found = place + 1;
    }
    place = previous_[static_cast<size_t>(place)];
  }
  std::vector<int32_t> drafts;
  if (longest < kLeastMatch) return drafts;
  for (int64_t i = 0; i < most; ++i) {
    const int64_t from = found + i, behind = from - std::ssize(text);
    drafts.push_back(behind < 0 ? text[static_cast<size_t>(from)] : drafts[static_cast<size_t>(behind)]);
  }
  return drafts;
}

}  // namespace sala
