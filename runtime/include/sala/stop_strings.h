// Strings that end a text, looked for while the text arrives in pieces.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "sala/status.h"

namespace sala {

/// Gives a text out up to the first place where one of the strings occurs. How the text is cut into pieces changes
/// nothing: a piece may end inside a stop string, or inside a UTF-8 character.
///
/// For example, with the stop string "\nUser:", push("Yes.\nUs") returns "Yes.", and push("ers ask") returns
/// "\nUsers ask". The time is linear in the length of the text, whatever the strings are.
///
/// If one string contains another, the text ends at the one that begins first: with "<end>" and "end", push("<en")
/// returns nothing, and push("d") too, since ">" may follow.
class StopStrings {
 public:
  static constexpr size_t kMostStrings = 64;
  static constexpr size_t kMostBytes = 1024;  // of one string

  /// kInvalidArgument for more strings than kMostStrings, and for one that is empty or longer than kMostBytes.
  static Expected<StopStrings> create(const std::vector<std::string>& strings);

  /// Takes the next bytes of the text. Returns those that no later piece can make part of a stop string. Nothing once
  /// the text has ended.
  std::string push(std::string_view piece);

  /// Ends the text. Returns the bytes that were held back, up to a stop string among them.
  std::string finish();

  /// Whether the text has ended before a stop string.
  bool found() const { return found_; }

 private:
  struct Node {           // a beginning of a string
    int64_t length = 0;   // in bytes
    int64_t ends = 0;     // length of the longest string that this ends with
    int32_t shorter = 0;  // the longest other beginning that this ends with
  };

  StopStrings() = default;
  int32_t add(const std::string& string);
  void link();
  int32_t step(int32_t node, char byte) const;
  /// Gives out the text up to `end`, counted from its beginning.
  std::string give(int64_t end);

  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::unordered_map<uint64_t, int32_t> edges_;  // the next node, by node and byte
  int32_t node_ = 0;                             // the longest beginning with which the text ends
  std::string held_;
  int64_t taken_ = 0;             // bytes
  int64_t given_ = 0;             // bytes
  std::optional<int64_t> first_;  // where the first stop string begins, as far as is known
  bool found_ = false;
  bool has_ended_ = false;
};

}  // namespace sala
