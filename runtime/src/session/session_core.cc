#include "session/session_core.h"

#include <algorithm>

#include "session/rope.h"

namespace sala {

namespace {

Expected<int64_t> chosen(std::optional<int64_t> wanted, int64_t otherwise, int64_t most, const char* name) {
  const int64_t value = wanted.value_or(otherwise);
  if (value < 1 || value > most) {
    return error(ErrorCode::kInvalidArgument, name, " is ", value, ", expected 1 to ", most,
                 ", which is what this engine serves");
  }
  return value;
}

/// Bytes of all caches for a context; -1 if they exceed the address space.
int64_t cache_bytes(const ModelData& model, int64_t max_context) {
  const SymbolSizes sizes = cache_sizes(model.config, std::max(max_context, model.engine->limits().least_capacity));
  int64_t total = 0;
  for (const CacheSpec& spec : model.step.caches) {
    const int64_t bytes = bytes_of(spec.past.dtype, elements_of(spec.past.bound(sizes)));
    if (bytes < 0 || __builtin_add_overflow(total, bytes, &total)) return -1;
  }
  return total;
}

std::string mebibytes(int64_t bytes) { return std::to_string((bytes >> 20) + (bytes % (1 << 20) != 0)) + " MiB"; }

}  // namespace

Expected<std::unique_ptr<SessionCore>> SessionCore::create(std::shared_ptr<const ModelData> model,
                                                           const SessionOptions& options) {
  const EngineLimits limits = model->engine->limits();
  const auto max_context =
      chosen(options.max_context, std::min(model->config.max_position_embeddings, limits.max_context),
             limits.max_context, "max_context");
  if (!max_context) return max_context.error();
  const auto chunk_tokens =
      chosen(options.chunk_tokens, limits.default_chunk_tokens, limits.max_chunk_tokens, "chunk_tokens");
  if (!chunk_tokens) return chunk_tokens.error();
  std::unique_ptr<SessionCore> core(new SessionCore(std::move(model), *max_context, *chunk_tokens));
  SALA_RETURN_IF_ERROR(core->allocate());
  return core;
}

Status SessionCore::check_room() const {
  const auto free = model_->engine->free_cache_bytes();
  if (!free) return free.error();
  if (!*free) return success();
  const int64_t needed = cache_bytes(*model_, max_context_);
  if (needed >= 0 && needed <= **free) return success();
  int64_t fits = 0;
  for (int64_t low = 1, high = max_context_ - 1; low <= high;) {
    const int64_t middle = low + (high - low) / 2;
    const int64_t bytes = cache_bytes(*model_, middle);
    const bool enough = bytes >= 0 && bytes <= **free;
    if (enough) fits = middle;
    (enough ? low : high) = enough ? middle + 1 : middle - 1;
  }
  const std::string advice = fits > 0 ? "choose max_context " + std::to_string(fits) + " or less"
                                      : "no context fits; end other programs on the GPU, or build the bundle with a "
                                        "smaller --prefill-chunk";
  return error(ErrorCode::kOutOfMemory, "the caches of a session of ", max_context_, " tokens take ", mebibytes(needed),
               ", ", mebibytes(**free), " are free beside the engine, ", mebibytes(needed - **free),
               " too few: ", advice);
}

Status SessionCore::allocate() {
  SALA_RETURN_IF_ERROR(check_room());
  SALA_RETURN_IF_ERROR(model_->engine->prepare(max_context_, chunk_tokens_));
  const SymbolSizes sizes =
      cache_sizes(model_->config, std::max(max_context_, model_->engine->limits().least_capacity));
  std::vector<CacheBinding> bindings;
  for (const CacheSpec& spec : model_->step.caches) {
    const Shape shape = spec.past.bound(sizes);
    const int64_t bytes = bytes_of(spec.past.dtype, elements_of(shape));
    if (bytes < 0) {
      return error(ErrorCode::kOutOfMemory, "cache ", spec.past.name, " of ", max_context_,
                   " tokens exceeds the address space; choose a smaller max_context");
    }
    auto buffer = model_->engine->memory().allocate(bytes);
    if (!buffer) return buffer.error();
    caches_.push_back({*std::move(buffer), shape});
    bindings.push_back({spec.past.name, spec.present_name, spec.past.dtype, shape, caches_.back().buffer.data()});
  }
  auto execution = model_->engine->create_execution(bindings);
  if (!execution) return execution.error();
  execution_ = *std::move(execution);
  logits_.resize(static_cast<size_t>(model_->config.vocab_size));
  return success();
}

std::optional<int32_t> SessionCore::pending_token() const {
  if (past_length_ == position()) return std::nullopt;
  return tokens_.back();
}

std::span<const float> SessionCore::logits() const {
  if (!has_logits_) return {};
  return logits_;
}

Status SessionCore::usable() const {
  if (poisoned_) {
    return error(ErrorCode::kSessionPoisoned,
                 "an earlier step of this session failed, its context is lost: reset it or make a new one");
  }
  return success();
}

Status SessionCore::check_tokens(std::span<const int32_t> token_ids) const {
  const int64_t vocab_size = model_->config.vocab_size;
  for (size_t i = 0; i < token_ids.size(); ++i) {
    if (token_ids[i] < 0 || token_ids[i] >= vocab_size) {
      return error(ErrorCode::kTokenOutOfRange, "token ", i, " of the prompt is ", token_ids[i], ", expected 0 to ",
                   vocab_size - 1, ": use the tokenizer of this model");
    }
  }
  return success();
}

Status SessionCore::run(std::span<const int32_t> token_ids, int64_t context_length) {
  const int64_t tokens = static_cast<int64_t>(token_ids.size());
  const int64_t head_dim = 2 * static_cast<int64_t>(model_->config.inv_freq.size());
  input_ids_.assign(token_ids.begin(), token_ids.end());
  rope_cos_sin_.resize(static_cast<size_t>(tokens * head_dim));
  rope_cos_sin(past_length_, model_->config.inv_freq, rope_cos_sin_);
  const StepInputs step{input_ids_, static_cast<int32_t>(past_length_), static_cast<int32_t>(context_length),
                        rope_cos_sin_};
  has_logits_ = false;
  ++changes_;
  poisoned_ = true;  // until the step has run: an engine that finds no memory may throw
  SALA_RETURN_IF_ERROR(execution_->run(tokens == 1 ? Profile::kDecode : Profile::kPrefill, step, logits_));
  tokens_.resize(static_cast<size_t>(past_length_));
  tokens_.insert(tokens_.end(), token_ids.begin(), token_ids.end());
  past_length_ += tokens;
  has_logits_ = true;
  poisoned_ = false;
  return success();
}

Expected<int32_t> SessionCore::sample(const SamplingOptions& options) {
  SALA_RETURN_IF_ERROR(usable());
  if (!has_logits_) {
    return error(ErrorCode::kNoLogits, "there are no logits to sample from: prefill a prompt first");
  }
  if (position() >= max_context_) {
    return error(ErrorCode::kContextExceeded, "the context is full with ", position(),
                 " tokens: restore its state into a session of larger max_context");
  }
  const auto token = sala::sample(logits_, tokens_, options, static_cast<size_t>(prompt_length_));
  if (!token) return token;
  tokens_.push_back(*token);
  ++changes_;
  has_logits_ = false;
  return token;
}

Status SessionCore::reset() {
  for (Cache& cache : caches_) SALA_RETURN_IF_ERROR(model_->engine->memory().clear(cache.buffer));
  restore({}, 0, 0, {});
  poisoned_ = false;
  stop_requested_ = false;
  return success();
}

void SessionCore::restore(std::vector<int32_t> tokens, int64_t past_length, int64_t prompt_length,
                          std::vector<float> logits) {
  tokens_ = std::move(tokens);
  ++changes_;
  past_length_ = past_length;
  prompt_length_ = prompt_length;
  has_logits_ = !logits.empty();
  if (has_logits_) logits_ = std::move(logits);
}

}  // namespace sala
