// The tokens of a context, side by side, in memory that forks share as they share caches.

#pragma once

#include <unistd.h>

#include <cstdint>
#include <span>

#include "sala/engine.h"
#include "sala/status.h"

namespace sala {

class TokenList {
 public:
  /// An empty list for at most `most` tokens. `memory` is the host's and outlives it.
  static Expected<TokenList> create(Memory& memory, int64_t most);

  /// The tokens. In a child of `fork`, which may not use the memory of its parent, none.
  std::span<const int32_t> view() const;
  int64_t size() const { return size_; }

  /// Makes room for tokens behind the first `size`.
  Status claim(int64_t size, int64_t tokens);
  /// Puts tokens, for which there is room, behind the first `size`.
  void assign(int64_t size, std::span<const int32_t> tokens);
  /// Forgets those behind the first `size`.
  void shrink(int64_t size) { size_ = size; }
  /// Makes an empty list one of the same tokens.
  Status share(const TokenList& from);

 private:
  TokenList(Memory& memory, Buffer buffer) : memory_(&memory), buffer_(std::move(buffer)) {}
  int32_t* data() const { return static_cast<int32_t*>(buffer_.data()); }

  Memory* memory_;
  Buffer buffer_;
  int64_t size_ = 0;
  pid_t process_ = getpid();
};

}  // namespace sala
