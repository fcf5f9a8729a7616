// Prompts as text that holds token ids.

#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sala/status.h"

namespace sala {

inline constexpr std::string_view kTokenIdSpace = " \t\r\n\f\v";
inline constexpr size_t kLongestTokenIdWord = 64;  // bytes

inline Error no_token_id(const std::string& where, std::string_view word) {
  const std::string_view shown = word.substr(0, kLongestTokenIdWord);
  return error(ErrorCode::kInvalidArgument, where, ": '", shown, shown.size() < word.size() ? "..." : "",
               "' is not a token id (see sala-run --help)");
}

/// Decimal ids, separated by white space; kInvalidArgument naming the first word that is none. `where` is for messages.
inline Expected<std::vector<int32_t>> parse_token_ids(std::string_view text, const std::string& where) {
  std::vector<int32_t> tokens;
  for (size_t begin = text.find_first_not_of(kTokenIdSpace); begin != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(kTokenIdSpace, begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    const auto parsed = std::from_chars(word.data(), word.data() + word.size(), tokens.emplace_back());
    if (parsed.ec != std::errc() || parsed.ptr != word.data() + word.size()) return no_token_id(where, word);
    begin = text.find_first_not_of(kTokenIdSpace, end);
  }
  return tokens;
}

/// Ids in text that arrives in blocks, which may be cut inside a word. It holds no more than a word.
class TokenIdStream {
 public:
  explicit TokenIdStream(std::string where) : where_(std::move(where)) {}

  /// The ids of the words that end in this block; errors as `parse_token_ids`.
  Expected<std::vector<int32_t>> push(std::string_view block) {
    word_.append(block);
    const size_t space = word_.find_last_of(kTokenIdSpace);
    const size_t end = space == std::string::npos ? 0 : space;
    auto tokens = parse_token_ids(std::string_view(word_).substr(0, end), where_);
    word_.erase(0, end);
    if (word_.size() > kLongestTokenIdWord) return no_token_id(where_, word_);
    return tokens;
  }

  /// The id of the last word, if the text does not end in white space.
  Expected<std::vector<int32_t>> finish() { return parse_token_ids(word_, where_); }

 private:
  std::string where_;
  std::string word_;  // that has begun, perhaps behind one space
};

}  // namespace sala
