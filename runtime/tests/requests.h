// Requests to a scheduler of a mock, and what is heard of their answers.

#pragma once

#include <future>
#include <optional>
#include <utility>
#include <vector>

#include "mock_engine.h"
#include "sala/scheduler.h"

namespace sala::test {

inline Mock paged_mock() {
  Mock mock;
  mock.engine->paged_memory_ = paged_host_memory();
  return mock;
}

inline RequestOptions answer_of(int64_t tokens, double temperature = 0) {
  RequestOptions options;
  options.generate = {tokens, {}, std::vector<int32_t>{}};
  options.generate.sampling.temperature = temperature;
  return options;
}

inline std::vector<int32_t> all(Answer& answer) {
  std::vector<int32_t> tokens;
  auto token = answer.next();
  for (; token && *token; token = answer.next()) tokens.push_back(**token);
  EXPECT_TRUE(token) << token.error().message;
  return tokens;
}

inline std::vector<int32_t> all(Generation& generation) {
  std::vector<int32_t> tokens;
  while (const auto token = *generation.next()) tokens.push_back(*token);
  return tokens;
}

/// Holds the scheduler's thread in the first token of a request, so that what is submitted meanwhile waits.
class Gate {
 public:
  explicit Gate(const Mock& mock, Scheduler& scheduler, int64_t tokens = 1) : session_(mock.session()) {
    RequestOptions options = answer_of(tokens);
    options.on_token = [this](int32_t) {
      if (!std::exchange(has_held_, true)) {
        held_.set_value();
        opened_.get_future().wait();
      }
      return true;
    };
    answer_.emplace(*scheduler.submit(session_, prompt(3), std::move(options)));
    held_.get_future().wait();
  }
  void open() { opened_.set_value(); }
  Answer& answer() { return *answer_; }

 private:
  Session session_;
  std::promise<void> held_, opened_;
  bool has_held_ = false;
  std::optional<Answer> answer_;
};

}  // namespace sala::test
