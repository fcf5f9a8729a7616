#include "sala/stop_strings.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace sala {

// The automaton of Aho and Corasick, "Efficient string matching: an aid to bibliographic search" (1975).

namespace {

uint64_t edge(int32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<uint64_t>(static_cast<unsigned char>(byte));
}

}  // namespace

Expected<StopStrings> StopStrings::create(const std::vector<std::string>& strings) {
  if (strings.size() > kMostStrings) {
    return error(ErrorCode::kInvalidArgument, "there are ", strings.size(), " stop strings, expected at most ",
                 kMostStrings);
  }
  StopStrings made;
  for (size_t i = 0; i < strings.size(); ++i) {
    if (strings[i].empty() || strings[i].size() > kMostBytes) {
      return error(ErrorCode::kInvalidArgument, "stop string ", i, " has ", strings[i].size(), " bytes, expected 1 to ",
                   kMostBytes);
    }
    const int32_t last = made.add(strings[i]);
    made.nodes_[static_cast<size_t>(last)].ends = made.nodes_[static_cast<size_t>(last)].length;
  }
  made.link();
  return made;
}

int32_t StopStrings::add(const std::string& string) {
  int32_t node = 0;
  for (const char byte : string) {
    const auto [next, is_new] = edges_.try_emplace(edge(node, byte), static_cast<int32_t>(nodes_.size()));
    if (is_new) nodes_.push_back({.length = nodes_[static_cast<size_t>(node)].length + 1, .ends = 0, .shorter = 0});
    node = next->second;
  }
  return node;
}

void StopStrings::link() {
  std::vector<std::tuple<int64_t, uint64_t, int32_t>> by_length;
  for (const auto& [from, to] : edges_) by_length.emplace_back(nodes_[static_cast<size_t>(to)].length, from, to);
  std::sort(by_length.begin(), by_length.end());
  for (const auto& [length, from, to] : by_length) {
    if (length == 1) continue;
    Node& node = nodes_[static_cast<size_t>(to)];
    node.shorter = step(nodes_[static_cast<size_t>(from >> 8)].shorter, static_cast<char>(from & 0xFF));
    node.ends = std::max(node.ends, nodes_[static_cast<size_t>(node.shorter)].ends);
  }
}

int32_t StopStrings::step(int32_t node, char byte) const {
  for (;; node = nodes_[static_cast<size_t>(node)].shorter) {
    if (const auto next = edges_.find(edge(node, byte)); next != edges_.end()) return next->second;
    if (node == 0) return 0;
  }
}

std::string StopStrings::push(std::string_view piece) {
  if (has_ended_) return {};
  for (size_t i = 0; i < piece.size(); ++i) {
    node_ = step(node_, piece[i]);
    ++taken_;
    const Node& node = nodes_[static_cast<size_t>(node_)];
    if (node.ends > 0) first_ = std::min(first_.value_or(taken_), taken_ - node.ends);
    // Whatever still may become a stop string begins later.
    if (first_ && taken_ - node.length >= *first_) {
      found_ = has_ended_ = true;
      held_.append(piece.substr(0, i + 1));
      return give(*first_);
    }
  }
  held_.append(piece);
  return give(taken_ - nodes_[static_cast<size_t>(node_)].length);
}

std::string StopStrings::finish() {
  if (has_ended_) return {};
  has_ended_ = true;
  found_ = first_.has_value();
  return give(first_.value_or(taken_));
}

std::string StopStrings::give(int64_t end) {
  const auto bytes = static_cast<size_t>(end - given_);
  std::string given = held_.substr(0, bytes);
  held_.erase(0, bytes);
  given_ = end;
  if (has_ended_) held_.clear();
  return given;
}

}  // namespace sala
