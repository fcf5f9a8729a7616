// An engine that computes the mock step.

#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "mock_step.h"
#include "sala/engine.h"
#include "sala/model.h"

namespace sala::test {

/// Host memory that counts, and fails where it is told to.
class MockMemory final : public Memory {
 public:
  Expected<Buffer> allocate(int64_t bytes) override {
    if (live_bytes_ + bytes > limit_bytes_) return error(ErrorCode::kOutOfMemory, "the mock has no room");
    live_bytes_ += bytes;
    ++allocations_;
    return Buffer(*this, std::calloc(1, static_cast<size_t>(bytes) + 1), bytes);
  }
  Status clear(Buffer& buffer) override {
    std::memset(buffer.data(), 0, static_cast<size_t>(buffer.bytes()));
    return success();
  }
  Status read(void* host, const void* from, int64_t bytes) override {
    if (fail_reads_) return error(ErrorCode::kEngineFailed, "the mock cannot read");
    std::memcpy(host, from, static_cast<size_t>(bytes));
    return success();
  }
  Status write(void* to, const void* host, int64_t bytes) override {
    std::memcpy(to, host, static_cast<size_t>(bytes));
    return success();
  }

  int64_t used_bytes() const override { return live_bytes_; }

  int64_t live_bytes_ = 0;
  int64_t allocations_ = 0;
  int64_t limit_bytes_ = INT64_MAX;
  bool fail_reads_ = false;

 private:
  void release(void* data, int64_t bytes) noexcept override {
    std::free(data);
    live_bytes_ -= bytes;
  }
};

/// One call of `Execution::run`.
struct Step {
  Profile profile;
  int64_t tokens;
  int64_t past_length;
  int64_t context_length;
  int64_t batch = 1;

  bool operator==(const Step&) const = default;
};

struct MockLog {
  std::vector<Step> steps;
  std::optional<size_t> fail_at;   // index of the step that fails
  std::optional<size_t> throw_at;  // index of the step that throws std::bad_alloc
  int64_t weights = 0;             // of `mock_weight`
  size_t most_rows = 0;            // whose logits a step gave
  int64_t no_room_for = 0;         // batch of which no execution can be made
  std::optional<int64_t> nan_at;   // position of the token whose logits are NaN
};

class MockExecution final : public Execution {
 public:
  MockExecution(std::span<const CacheBinding> caches, std::shared_ptr<MockLog> log)
      : caches_(caches.begin(), caches.end()), log_(std::move(log)) {}

  Status run(Profile profile, const StepInputs& step, std::span<float> logits) override {
    const int64_t tokens = step.tokens();
    log_->steps.push_back({profile, tokens, step.past_length[0], step.context_length[0], step.batch()});
    if (log_->fail_at == log_->steps.size() - 1) return error(ErrorCode::kEngineFailed, "the mock fails as told");
    if (log_->throw_at == log_->steps.size() - 1) throw std::bad_alloc();
    log_->most_rows = std::max(log_->most_rows, step.logit_rows.size());
    for (int64_t b = 0; b < step.batch(); ++b) run_row(b, tokens, step, logits);
    return success();
  }

 private:
  void run_row(int64_t b, int64_t tokens, const StepInputs& step, std::span<float> logits) const {
    const auto row = static_cast<size_t>(b);
    float* state = static_cast<float*>(caches_[0].data) + b * kHeads;
    const MockCaches caches{rows(1, b), rows(2, b), rows(3, b), rows(4, b)};
    const int64_t past = step.past_length[row];
    for (int64_t t = 0; t < tokens; ++t) {
      const auto token = static_cast<size_t>(b * tokens + t);
      mock_state(state, step.input_ids[token], step.rope_cos_sin[2 * token + 1], step.context_length[row]);
      mock_caches(caches, past + t, step.input_ids[token]);
      for (size_t i = 0; i < step.logit_rows.size(); ++i) {
        if (static_cast<size_t>(step.logit_rows[i]) != token) continue;
        mock_logits(state, caches, past + t + 1, log_->weights, logits.data() + i * kVocabSize);
        if (log_->nan_at == past + t) logits[i * kVocabSize] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }

  MockRows rows(size_t cache, int64_t b) const {
    const int64_t count = caches_[cache].shape[2];
    return {static_cast<float*>(caches_[cache].data) + b * kHeads * count * kWidth, count};
  }

  std::vector<CacheBinding> caches_;
  std::shared_ptr<MockLog> log_;
};

constexpr int64_t kMaxLogitRows = 6;

class MockEngine final : public Engine {
 public:
  explicit MockEngine(std::string precision = "fp32") : precision_(std::move(precision)) {
    const Extent batch{0, "batch"}, tokens{0, "tokens"}, rows{0, "rows"};
    inputs_ = {{"input_ids", DType::kInt64, {batch, tokens}},
               {"past_length", DType::kInt32, {batch}},
               {"context_length", DType::kInt32, {batch}},
               {"rope_cos_sin", DType::kFloat32, {batch, tokens, {2, {}}}},
               {"logit_rows", DType::kInt32, {rows}}};
    outputs_ = {{"logits", DType::kFloat32, {rows, {kVocabSize, {}}}}};
    add_cache("0.state", {batch, {kHeads, {}}});
    for (const auto& [name, symbol] : {std::pair("1.key", "capacity"), std::pair("1.value", "capacity"),
                                       std::pair("1.k1", "capacity_k1"), std::pair("1.k2", "capacity_k2")}) {
      add_cache(name, {batch, {kHeads, {}}, {0, symbol}, {kWidth, {}}});
    }
  }

  std::string_view name() const override { return "mock"; }
  std::string_view precision() const override { return precision_; }
  std::span<const TensorSpec> inputs() const override { return inputs_; }
  std::span<const TensorSpec> outputs() const override { return outputs_; }
  EngineLimits limits() const override {
    return {.max_context = 1 << 20,
            .max_chunk_tokens = 2048,
            .default_chunk_tokens = 16,
            .max_batch = 8,
            .max_logit_rows = kMaxLogitRows};
  }
  Memory& memory() const override { return paged_memory_ ? *paged_memory_ : memory_; }
  Expected<std::unique_ptr<Execution>> create_execution(std::span<const CacheBinding> caches,
                                                        CacheContents) const override {
    if (caches[0].shape[0] == log_->no_room_for) return error(ErrorCode::kOutOfMemory, "the mock has no room for it");
    return std::unique_ptr<Execution>(new MockExecution(caches, log_));
  }

  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  mutable MockMemory memory_;
  std::unique_ptr<Memory> paged_memory_;  // in its place
  std::shared_ptr<MockLog> log_ = std::make_shared<MockLog>();

 private:
  void add_cache(const std::string& name, std::vector<Extent> shape) {
    inputs_.push_back({"past_key_values." + name, DType::kFloat32, shape});
    outputs_.push_back({"present." + name, DType::kFloat32, shape});
  }

  std::string precision_;
};

inline ModelConfig mock_config() {
  ModelConfig config;
  config.source = "mock";
  config.fingerprint = "0123abcd";
  config.vocab_size = kVocabSize;
  config.max_position_embeddings = 4096;
  config.eos_token_ids = {2};
  config.inv_freq = {0.37f};
  config.kernel_size = kKernelSize;
  config.kernel_stride = kKernelStride;
  config.dense_len = kDenseLength;
  return config;
}

/// An engine and a model on it.
struct Mock {
  explicit Mock(ModelConfig config = mock_config(), std::string precision = "fp32")
      : engine(std::make_shared<MockEngine>(std::move(precision))), model(*Model::create(std::move(config), engine)) {}

  Session session(int64_t max_context = 4096, int64_t chunk_tokens = 16) const {
    return *model.create_session({max_context, chunk_tokens});
  }
  std::vector<Step>& steps() const { return engine->log_->steps; }

  std::shared_ptr<MockEngine> engine;
  Model model;
};

/// A prompt without stop tokens in which no short pattern repeats.
inline std::vector<int32_t> prompt(int64_t tokens) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i)
    ids.push_back(static_cast<int32_t>((i * i * 7 + i * 3 + i / 11) % (kVocabSize - 3) + 3));
  return ids;
}

inline std::vector<float> values(std::span<const float> logits) { return {logits.begin(), logits.end()}; }

}  // namespace sala::test
