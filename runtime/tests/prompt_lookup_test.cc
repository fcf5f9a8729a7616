// Drafts against a search through the whole text, and how many of them there are to be.

#include "session/prompt_lookup.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "session/draft_depth.h"

namespace sala {
namespace {

/// Tries every earlier place for the longest match, the latest among equals.
std::vector<int32_t> searched(const std::vector<int32_t>& text, int64_t most) {
  const auto size = static_cast<int64_t>(text.size());
  int64_t longest = PromptLookup::kLeastMatch - 1, place = 0;
  for (int64_t end = size - 1; end > 0; --end) {
    int64_t length = 0;
    while (length < std::min(end, PromptLookup::kLongestMatch) && text[end - 1 - length] == text[size - 1 - length]) {
      ++length;
    }
    if (length <= longest) continue;
    longest = length;
    place = end;
  }
  std::vector<int32_t> whole = text;
  if (longest < PromptLookup::kLeastMatch) most = 0;
  for (int64_t i = 0; i < most; ++i) whole.push_back(whole[static_cast<size_t>(place + i)]);
  return {whole.begin() + size, whole.end()};
}

TEST(PromptLookup, FindsWhatASearchThroughTheWholeTextFinds) {
  int found = 0;
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const uint32_t alphabet = 8 + random() % 20;  // so that no three tokens occur more often than a lookup compares
    std::vector<int32_t> text;
    PromptLookup lookup;
    for (int change = 0; change < 20; ++change) {
      if (random() % 4 == 0) {
        const auto size = static_cast<int64_t>(random() % (text.size() + 1));
        lookup.cut(text, size);
        text.resize(static_cast<size_t>(size));
        EXPECT_LE(lookup.size(), size);
      }
      const size_t more = random() % (change % 10 == 0 ? 600 : 40);
      // New tokens, or a copy of old ones.
      const size_t from = text.empty() ? 0 : random() % text.size(), old = text.size();
      for (size_t i = 0; i < more; ++i) {
        const bool is_copy = change % 2 == 1 && from + i < old;
        text.push_back(is_copy ? text[from + i] : static_cast<int32_t>(random() % alphabet));
      }
      lookup.extend(text);
      const auto most = static_cast<int64_t>(1 + random() % 20);
      const auto drafts = lookup.drafts(text, most);
      ASSERT_EQ(drafts, searched(text, most)) << text.size();
      found += !drafts.empty();
    }
  }
  EXPECT_GT(found, 200);
}

TEST(PromptLookup, GoesOnWithALoop) {
  std::vector<int32_t> text = {9, 9, 9};
  for (int i = 0; i < 10'000; ++i) text.push_back(i % 3);  // each place of a loop has more candidates than are compared
  PromptLookup lookup;
  lookup.extend(text);
  EXPECT_EQ(lookup.drafts(text, 7), (std::vector<int32_t>{1, 2, 0, 1, 2, 0, 1}));
}

TEST(PromptLookup, HasNothingForATextThatDoesNotRepeat) {
  std::vector<int32_t> text = {7, 8, 1, 7, 8, 2, 7, 8};
  PromptLookup lookup;
  EXPECT_TRUE(lookup.drafts({}, 4).empty());
  lookup.extend(text);
  EXPECT_TRUE(lookup.drafts(text, 4).empty());
}

/// Depths of so many steps, of which the drafts of each are right as far as told.
std::vector<int64_t> depths(DraftDepth depth, const std::vector<int64_t>& accepted) {
  std::vector<int64_t> found;
  for (const int64_t right : accepted) {
    found.push_back(depth.next());
    depth.learn(found.back(), std::min(right, found.back()));
  }
  return found;
}

TEST(DraftDepth, GrowsWhileAllAreRightAndFallsToThoseThatAre) {
  EXPECT_EQ(depths(DraftDepth(20), {99, 99, 99, 99, 3, 3, 5, 1, 99}),
            (std::vector<int64_t>{4, 8, 16, 20, 20, 3, 6, 5, 1}));
  EXPECT_EQ(depths(DraftDepth(2), {99, 1, 1}), (std::vector<int64_t>{2, 2, 1}));
}

TEST(DraftDepth, PausesLongerEachTimeThatNoneIsRight) {
  const auto found = depths(DraftDepth(8), std::vector<int64_t>(1000, 0));
  EXPECT_EQ(std::ranges::count_if(found, [](int64_t depth) { return depth > 0; }), 21)
      << "6 in the first 70 steps, then one of 65";
  EXPECT_EQ(std::vector(found.begin(), found.begin() + 8), (std::vector<int64_t>{4, 0, 1, 0, 0, 1, 0, 0}));
  std::vector<int64_t> accepted(12, 0);
  accepted[5] = 1;
  EXPECT_EQ(depths(DraftDepth(8), accepted), (std::vector<int64_t>{4, 0, 1, 0, 0, 1, 2, 0, 1, 0, 0, 1}));
}

}  // namespace
}  // namespace sala
