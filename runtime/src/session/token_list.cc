#include "session/token_list.h"

#include <algorithm>
#include <utility>

namespace sala {

namespace {

constexpr int64_t kTokenBytes = sizeof(int32_t);

}  // namespace

Expected<TokenList> TokenList::create(Memory& memory, int64_t most) {
  auto buffer = memory.allocate(most * kTokenBytes);
  if (!buffer) return buffer.error();
  return TokenList(memory, *std::move(buffer));
}

std::span<const int32_t> TokenList::view() const {
  if (getpid() != process_) return {};
  return {data(), static_cast<size_t>(size_)};
}

Status TokenList::claim(int64_t size, int64_t tokens) {
  return memory_->claim(buffer_, {size * kTokenBytes, tokens * kTokenBytes});
}

void TokenList::assign(int64_t size, std::span<const int32_t> tokens) {
  std::copy(tokens.begin(), tokens.end(), data() + size);
  size_ = size + static_cast<int64_t>(tokens.size());
}

Status TokenList::share(const TokenList& from) {
  SALA_RETURN_IF_ERROR(memory_->share(buffer_, from.buffer_, {}));
  size_ = from.size_;
  return success();
}

}  // namespace sala
