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

/// Decimal ids, separated by white space; kInvalidArgument naming the first word that is none. `where` is for messages.
inline Expected<std::vector<int32_t>> parse_token_ids(std::string_view text, const std::string& where) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  std::vector<int32_t> tokens;
  for (size_t begin = text.find_first_not_of(kSpace); begin != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(kSpace, begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    const auto parsed = std::from_chars(word.data(), word.data() + word.size(), tokens.emplace_back());
    if (parsed.ec != std::errc() || parsed.ptr != word.data() + word.size()) {
      return error(ErrorCode::kInvalidArgument, where, ": '", word, "' is not a token id (see sala-run --help)");
    }
    begin = text.find_first_not_of(kSpace, end);
  }
  return tokens;
}

}  // namespace sala
