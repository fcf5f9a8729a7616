// A constraint that leaves so few tokens that a text soon repeats itself, and drafts are often right.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include "mock_engine.h"
#include "sala/token_constraint.h"

namespace sala::test {

/// Any of a few tokens may come. It notes which one came.
class SomeTokens final : public TokenConstraint {
 public:
  explicit SomeTokens(std::span<const int32_t> tokens) : words_(kVocabSize / 32 + 1) {
    for (const int32_t token : tokens) words_[static_cast<size_t>(token / 32)] |= 1u << token % 32;
  }

  Expected<std::span<const uint32_t>> allowed() override { return std::span<const uint32_t>(words_); }
  Status take(int32_t token) override {
    taken.push_back(token);
    return success();
  }

  std::vector<int32_t> taken;

 private:
  std::vector<uint32_t> words_;
};

inline std::shared_ptr<SomeTokens> some_tokens(const std::vector<int32_t>& tokens) {
  return std::make_shared<SomeTokens>(tokens);
}

}  // namespace sala::test
