// Stop strings in C++ and C against a search of the whole text.

#include "sala/stop_strings.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "c_errors.h"
#include "sala.h"

namespace sala::test {
namespace {

/// The text before the first place where one of the strings begins.
std::string searched(const std::string& text, const std::vector<std::string>& strings) {
  size_t end = text.size();
  for (const std::string& each : strings) end = std::min(end, text.find(each));
  return text.substr(0, end);
}

struct Outcome {
  std::string text;
  bool found;
  size_t most_held = 0;

  bool operator==(const Outcome& other) const { return text == other.text && found == other.found; }
};

/// What comes out of pieces of 0 to `most` bytes.
Outcome matched(const std::string& text, const std::vector<std::string>& strings, std::mt19937& random, size_t most) {
  auto matcher = *StopStrings::create(strings);
  Outcome outcome{"", false};
  for (size_t at = 0; at < text.size() && !matcher.found();) {
    const size_t bytes = std::uniform_int_distribution<size_t>(0, most)(random);
    outcome.text += matcher.push(std::string_view(text).substr(at, bytes));
    at = std::min(text.size(), at + bytes);
    if (!matcher.found()) outcome.most_held = std::max(outcome.most_held, at - outcome.text.size());
  }
  outcome.text += matcher.finish();
  outcome.found = matcher.found();
  return outcome;
}

std::string random_text(std::mt19937& random, const std::vector<std::string>& letters, size_t least, size_t most) {
  std::string text;
  const size_t count = std::uniform_int_distribution<size_t>(least, most)(random);
  for (size_t i = 0; i < count; ++i) text += letters[random() % letters.size()];
  return text;
}

TEST(StopStrings, EqualASearchOfTheWholeTextHoweverItIsCut) {
  std::mt19937 random(7);
  const std::vector<std::vector<std::string>> alphabets = {{"a", "b"},
                                                           {"a", "b", "c", "d", "e", "f"},
                                                           {"ä", "ö", "a", "\n"},
                                                           {"日", "本", "a"},
                                                           {std::string(1, '\0'), "\xff"}};
  int found = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    const auto& letters = alphabets[static_cast<size_t>(trial) % alphabets.size()];
    std::vector<std::string> strings;
    for (size_t count = random() % 5; strings.size() < count;) strings.push_back(random_text(random, letters, 1, 7));
    const std::string text = random_text(random, letters, 0, 60);
    const std::string expected = searched(text, strings);
    const Outcome outcome = matched(text, strings, random, 1 + random() % 20);
    ASSERT_EQ(outcome, (Outcome{expected, expected.size() < text.size()})) << testing::PrintToString(strings) << text;
    size_t longest = 0;
    for (const std::string& each : strings) longest = std::max(longest, each.size());
    ASSERT_LE(outcome.most_held, longest);
    found += outcome.found;
  }
  EXPECT_GT(found, 5000);
  EXPECT_LT(found, 15000);
}

TEST(StopStrings, GivesOutWhatIsDecidedAtOnce) {
  auto matcher = *StopStrings::create({"\nUser:"});
  EXPECT_EQ(matcher.push("Yes.\nUs"), "Yes.");
  EXPECT_EQ(matcher.push("ers ask"), "\nUsers ask");
  EXPECT_EQ(matcher.push("\nUse"), "");
  EXPECT_EQ(matcher.push("\nUser"), "\nUse");
  EXPECT_FALSE(matcher.found());
  EXPECT_EQ(matcher.push(": what follows"), "");
  EXPECT_TRUE(matcher.found());
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopStrings, TheStringThatBeginsFirstCounts) {
  const std::vector<std::string> strings = {"<end>", "end"};
  auto matcher = *StopStrings::create(strings);
  EXPECT_EQ(matcher.push("text <en"), "text ");
  EXPECT_EQ(matcher.push("d"), "") << "> may follow";
  EXPECT_FALSE(matcher.found());
  auto other = matcher;
  EXPECT_EQ(matcher.push(">"), "");
  EXPECT_TRUE(matcher.found());
  EXPECT_EQ(other.push("s"), "<") << "the shorter one was there after all";
  EXPECT_TRUE(other.found());
  auto ended = *StopStrings::create(strings);
  EXPECT_EQ(ended.push("<end"), "");
  EXPECT_EQ(ended.finish(), "<");
  EXPECT_TRUE(ended.found());
}

TEST(StopStrings, WithoutStringsAllComesThrough) {
  auto matcher = *StopStrings::create({});
  EXPECT_EQ(matcher.push("some"), "some");
  EXPECT_EQ(matcher.finish(), "");
  EXPECT_FALSE(matcher.found());
}

TEST(StopStrings, RefusesWhatItCannotLookFor) {
  const auto message = [](const std::vector<std::string>& strings) {
    const auto made = StopStrings::create(strings);
    return made ? std::string() : made.error().message;
  };
  EXPECT_EQ(message({"a", ""}), "stop string 1 has 0 bytes, expected 1 to 1024");
  EXPECT_EQ(message({std::string(1025, 'a')}), "stop string 0 has 1025 bytes, expected 1 to 1024");
  EXPECT_EQ(message(std::vector<std::string>(65, "a")), "there are 65 stop strings, expected at most 64");
  EXPECT_EQ(message(std::vector<std::string>(64, std::string(1024, 'a'))), "");
}

TEST(StopStrings, TakesTimeThatIsLinearInTheText) {
  // A search that begins anew at each letter would compare a thousand of them each time.
  std::vector<std::string> strings;
  for (size_t i = 1; i <= 64; ++i) strings.push_back(std::string(1024 - i, 'a') + "b");
  const std::string text(1 << 20, 'a');
  auto matcher = *StopStrings::create(strings);
  const auto start = std::chrono::steady_clock::now();
  size_t given = 0;
  for (size_t at = 0; at < text.size(); at += 16) given += matcher.push(std::string_view(text).substr(at, 16)).size();
  EXPECT_EQ(given, text.size() - 1023);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(CStopStrings, ShowsTheTextUpToAStopString) {
  const char* const strings[] = {"\nUser:", "</s>"};
  sala_stop_strings* matcher = nullptr;
  ASSERT_EQ(message_of(sala_stop_strings_create(strings, 2, &matcher)), "");
  std::string text;
  const char* shown = nullptr;
  size_t bytes = 0;
  int32_t found = -1;
  for (const std::string piece : {"Yes.\nUs", "ers a", "sk\n", "User", ": no", "more"}) {
    ASSERT_EQ(message_of(sala_stop_strings_push(matcher, piece.data(), piece.size(), &shown, &bytes, &found)), "");
    text.append(shown, bytes);
    EXPECT_EQ(found, piece == ": no" || piece == "more" ? 1 : 0);
  }
  ASSERT_EQ(message_of(sala_stop_strings_finish(matcher, &shown, &bytes, &found)), "");
  EXPECT_EQ(bytes, 0u);
  EXPECT_EQ(found, 1);
  EXPECT_EQ(text, "Yes.\nUsers ask");
  EXPECT_EQ(message_of(sala_stop_strings_push(matcher, nullptr, 1, &shown, &bytes, &found)), "text is NULL");
  EXPECT_EQ(message_of(sala_stop_strings_push(nullptr, "a", 1, &shown, &bytes, &found)), "stop_strings is NULL");
  EXPECT_EQ(message_of(sala_stop_strings_finish(matcher, &shown, nullptr, &found)), "shown_bytes is NULL");
  sala_stop_strings_destroy(matcher);
}

TEST(CStopStrings, RefusesWrongStrings) {
  const char* const strings[] = {"a", "", nullptr};
  sala_stop_strings* matcher = nullptr;
  EXPECT_EQ(message_of(sala_stop_strings_create(strings, 2, &matcher)),
            "stop string 1 has 0 bytes, expected 1 to 1024");
  EXPECT_EQ(message_of(sala_stop_strings_create(strings + 2, 1, &matcher)), "a stop string is NULL");
  EXPECT_EQ(message_of(sala_stop_strings_create(nullptr, 1, &matcher)), "strings is NULL");
  EXPECT_EQ(message_of(sala_stop_strings_create(strings, SIZE_MAX, &matcher)),
            "count is 18446744073709551615, expected at most 64 stop strings");
  EXPECT_EQ(message_of(sala_stop_strings_create(strings, 1, nullptr)), "stop_strings is NULL");
  EXPECT_EQ(matcher, nullptr);
  sala_stop_strings_destroy(nullptr);
  ASSERT_EQ(message_of(sala_stop_strings_create(nullptr, 0, &matcher)), "") << "none at all";
  sala_stop_strings_destroy(matcher);
}

}  // namespace
}  // namespace sala::test
