#include "session/session_core.h"

#include <algorithm>
#include <numeric>

#include "session/rope.h"

namespace sala {

namespace {

/// Every cache has it, with or without rows: Triton asks the driver about each address before a launch.
constexpr ByteRange kFirstByte{0, 1};

Expected<int64_t> chosen(std::optional<int64_t> wanted, int64_t otherwise, int64_t most, const char* name) {
  const int64_t value = wanted.value_or(otherwise);
  if (value < 1 || value > most) {
    return error(ErrorCode::kInvalidArgument, name, " is ", value, ", expected 1 to ", most,
                 ", which is what this engine serves");
  }
  return value;
}

/// Rows of which a cache has a multiple, so that it ends where a page does.
int64_t rows_of_pages(const CacheSpec& spec, const SymbolSizes& sizes, int64_t page_bytes) {
  const Shape shape = spec.past.bound(sizes);
  const int64_t bytes = bytes_of(spec.past.dtype, elements_of(shape)) / shape[spec.row_axis];
  return page_bytes / std::gcd(page_bytes, bytes);
}

/// Sizes of the caches of a session. Where the engine runs batches, each cache ends where a page does, so that those of
/// several sessions can stand side by side, unless it would be larger than the engine takes.
SymbolSizes sizes_for(const ModelData& model, int64_t max_context) {
  const EngineLimits limits = model.engine->limits();
  int64_t capacity = std::max(max_context, limits.least_capacity);
  const SymbolSizes least = cache_sizes(model.config, capacity);
  if (limits.max_batch == 1) return least;
  SymbolSizes sizes = least;
  for (const CacheRows rows : {CacheRows::kTokens, CacheRows::kK1Windows, CacheRows::kK2Windows}) {
    int64_t multiple = 1;
    std::string_view symbol;
    for (const CacheSpec& spec : model.step.caches) {
      if (spec.rows != rows) continue;
      symbol = spec.past.shape[spec.row_axis].symbol;
      multiple = std::lcm(multiple, rows_of_pages(spec, sizes, model.engine->memory().page_bytes()));
    }
    if (symbol.empty()) continue;
    int64_t& count = sizes.find(symbol)->second;
    count = (count + multiple - 1) / multiple * multiple;
    if (rows == CacheRows::kTokens) {
      capacity = count;
      sizes = cache_sizes(model.config, capacity);
    }
  }
  const bool are_served = std::ranges::all_of(
      limits.largest_caches, [&](const auto& most) { return sizes.find(most.first)->second <= most.second; });
  return are_served ? sizes : least;
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
  const int64_t max_checkpoints = options.max_checkpoints.value_or(kDefaultMaxCheckpoints);
  if (max_checkpoints < 0) {
    return error(ErrorCode::kInvalidArgument, "max_checkpoints is ", max_checkpoints, ", expected 0 or more");
  }
  auto core = allocate(std::move(model), *max_context, *chunk_tokens, max_checkpoints);
  if (core) SALA_RETURN_IF_ERROR((*core)->begin());
  return core;
}

Expected<std::unique_ptr<SessionCore>> SessionCore::allocate(std::shared_ptr<const ModelData> model,
                                                             int64_t max_context, int64_t chunk_tokens,
                                                             int64_t max_checkpoints) {
  auto tokens = TokenList::create(*model->token_memory, max_context);
  if (!tokens) return tokens.error();
  std::unique_ptr<SessionCore> core(
      new SessionCore(std::move(model), max_context, chunk_tokens, max_checkpoints, *std::move(tokens)));
  SALA_RETURN_IF_ERROR(core->bind());
  return core;
}

Status SessionCore::bind() {
  SALA_RETURN_IF_ERROR(model_->engine->prepare(chunk_tokens_));
  const SymbolSizes sizes = sizes_for(*model_, max_context_);
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
  SALA_RETURN_IF_ERROR(begin());
  SALA_RETURN_IF_ERROR(claim(0, 1));
  auto execution = model_->engine->create_execution(bindings, CacheContents::kEmpty);
  if (!execution) return execution.error();
  execution_ = *std::move(execution);
  logits_.resize(static_cast<size_t>(model_->config.vocab_size));
  return empty();
}

Status SessionCore::empty() {
  for (Cache& cache : caches_) SALA_RETURN_IF_ERROR(model_->engine->memory().clear(cache.buffer));
  return success();
}

Status SessionCore::begin() {
  for (Cache& cache : caches_) SALA_RETURN_IF_ERROR(model_->engine->memory().claim(cache.buffer, kFirstByte));
  return claim(0, 0);
}

Status SessionCore::claim(int64_t past_length, int64_t tokens) {
  Memory& memory = model_->engine->memory();
  for (size_t i = 0; i < caches_.size(); ++i) {
    for (const ByteRange& part : rows(i, past_length, past_length + tokens).parts()) {
      SALA_RETURN_IF_ERROR(memory.claim(caches_[i].buffer, part));
    }
  }
  return success();
}

Status SessionCore::claim_for_step(int64_t past_length, int64_t tokens) {
  Status claimed = tokens_.claim(past_length, tokens);
  if (claimed) claimed = claim(past_length, tokens);
  // What there is no room for has not changed anything. After any other failure a cache may be gone.
  if (!claimed && claimed.error().code != ErrorCode::kOutOfMemory) poisoned_ = true;
  return claimed;
}

int64_t SessionCore::bytes_for(int64_t tokens) const {
  int64_t bytes = 0;
  for (size_t i = 0; i < caches_.size(); ++i) {
    for (const ByteRange& part : rows(i, past_length_, past_length_ + tokens).parts()) {
      bytes += model_->engine->memory().unclaimed_bytes(caches_[i].buffer, part);
    }
  }
  return bytes;
}

Status SessionCore::require_room(int64_t tokens) const {
  const auto free = model_->engine->memory().free_bytes();
  if (!free) return free.error();
  if (!*free) return success();
  const int64_t needed = bytes_for(tokens);
  if (needed <= **free) return success();
  int64_t fits = 0;
  for (int64_t low = 1, high = tokens - 1; low <= high;) {
    const int64_t middle = low + (high - low) / 2;
    const bool enough = bytes_for(middle) <= **free;
    if (enough) fits = middle;
    (enough ? low : high) = enough ? middle + 1 : middle - 1;
  }
  return error(ErrorCode::kOutOfMemory, "the keys and values of ", tokens, " tokens take ", mebibytes(needed), ", ",
               mebibytes(**free), " are free, which is enough for ", fits,
               " tokens: end other sessions, or other programs on the GPU, or give a shorter prompt");
}

std::optional<int32_t> SessionCore::pending_token() const {
  if (past_length_ == position()) return std::nullopt;
  return pending_;
}

std::span<const float> SessionCore::logits() const {
  if (!has_logits_ || pending_token()) return {};
  return logits_;
}

Status SessionCore::usable() const {
  if (poisoned_) {
    return error(ErrorCode::kSessionPoisoned,
                 "an earlier step of this session failed, its context is lost: reset it or make a new one");
  }
  return success();
}

Status SessionCore::check_fits(int64_t before, int64_t tokens) const {
  if (tokens <= max_context_ - before) return success();
  return error(ErrorCode::kContextExceeded, "the prompt needs a context of at least ", before + tokens,
               " tokens, max_context is ", max_context_, " and ", before,
               " are taken: make a session of larger max_context");
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

Status SessionCore::choose_rows(int64_t tokens, std::span<const int32_t> rows) {
  wanted_rows_ = 0;
  logit_rows_.clear();
  for (const int32_t row : rows) {
    if (row >= (logit_rows_.empty() ? 0 : logit_rows_.back() + 1) && row < tokens) {
      logit_rows_.push_back(row);
      continue;
    }
    return error(ErrorCode::kInvalidArgument, "row ", row, " is not one of the step's ", tokens,
                 " tokens, or not behind the row before it");
  }
  if (rows.empty() || rows.back() != tokens - 1) logit_rows_.push_back(static_cast<int32_t>(tokens - 1));
  if (logit_rows_.size() > 1) SALA_RETURN_IF_ERROR(reserve_rows());
  wanted_rows_ = rows.size();
  return success();
}

Status SessionCore::reserve_rows() {
  const auto count = static_cast<int64_t>(logit_rows_.size());
  if (const int64_t most = model_->engine->limits().max_logit_rows; count > most) {
    return error(ErrorCode::kInvalidArgument, "the step has ", count, " rows of logits, with the last, expected 1 to ",
                 most, ", which is what this engine serves");
  }
  const size_t elements = logit_rows_.size() * logits_.size();
  if (row_logits_.size() < elements) {
    row_logits_ = std::vector<float>();  // before the larger one takes memory
    row_logits_.resize(elements);
  }
  return execution_->reserve_rows(count);
}

std::span<const float> SessionCore::row_logits() const {
  const std::span<const float> all = logit_rows_.size() > 1 ? row_logits_ : logits_;
  return all.first(wanted_rows_ * logits_.size());
}

void SessionCore::drop_row_logits() {
  if (!ahead_.empty()) return;  // they are still read
  wanted_rows_ = 0;
  row_logits_ = std::vector<float>();
}

std::span<float> SessionCore::step_rows() {
  if (logit_rows_.size() == 1) return logits_;
  return std::span(row_logits_).first(logit_rows_.size() * logits_.size());
}

Status SessionCore::run(std::span<const int32_t> token_ids, int64_t context_length, std::span<const int32_t> rows) {
  SALA_RETURN_IF_ERROR(settle());
  const int64_t tokens = static_cast<int64_t>(token_ids.size());
  SALA_RETURN_IF_ERROR(choose_rows(tokens, rows));
  SALA_RETURN_IF_ERROR(claim_for_step(tokens));
  begin_step();
  const std::span<float> to = step_rows();
  const Status ran = run_step(past_length_, token_ids, context_length, to);
  if (!ran) return lose(ran.error());
  if (logit_rows_.size() > 1) std::ranges::copy(to.last(logits_.size()), logits_.begin());
  end_step(token_ids);
  return success();
}

Status SessionCore::run_step(int64_t past_length, std::span<const int32_t> token_ids, int64_t context_length,
                             std::span<float> logits) {
  const size_t head_dim = 2 * model_->config.inv_freq.size();
  input_ids_.assign(token_ids.begin(), token_ids.end());
  rope_cos_sin_.resize(token_ids.size() * head_dim);
  rope_cos_sin(past_length, model_->config.inv_freq, rope_cos_sin_);
  const auto past = static_cast<int32_t>(past_length), of_context = static_cast<int32_t>(context_length);
  const StepInputs step{input_ids_, {&past, 1}, {&of_context, 1}, rope_cos_sin_, logit_rows_};
  return execution_->run(token_ids.size() == 1 ? Profile::kDecode : Profile::kPrefill, step, logits);
}

void SessionCore::begin_step() {
  has_logits_ = false;
  ++changes_;
  poisoned_ = true;  // until the step has run: an engine that finds no memory may throw
}

void SessionCore::end_step(std::span<const int32_t> token_ids) {
  tokens_.assign(past_length_, token_ids);
  past_length_ += static_cast<int64_t>(token_ids.size());
  state_length_ = past_length_;
  has_logits_ = true;
  poisoned_ = false;
}

Error SessionCore::lose(const Error& reason) {
  poisoned_ = true;
  // One code for a session that is lost, whatever the engine lacked, unless its weights are damaged for all sessions.
  const bool is_of_weights = reason.code == ErrorCode::kBundleDamaged || reason.code == ErrorCode::kWeightsUnsuitable;
  return error(is_of_weights ? reason.code : ErrorCode::kEngineFailed, reason.message);
}

Expected<int32_t> SessionCore::sample(const SamplingOptions& options, std::span<const uint32_t> allowed) {
  SALA_RETURN_IF_ERROR(usable());
  if (logits().empty()) {
    return error(ErrorCode::kNoLogits, "there are no logits to sample from: prefill a prompt first");
  }
  if (position() >= max_context_) {
    return error(ErrorCode::kContextExceeded, "the context is full with ", position(),
                 " tokens: restore its state into a session of larger max_context");
  }
  const auto token = sala::sample(logits_, tokens_.view(), options, static_cast<size_t>(prompt_length_), allowed);
  if (!token) return token;
  SALA_RETURN_IF_ERROR(tokens_.claim(position(), 1));
  tokens_.assign(position(), {&*token, 1});
  pending_ = *token;
  ++changes_;
  return token;
}

Status SessionCore::reset() {
  poisoned_ = true;  // until all of it is empty
  SALA_RETURN_IF_ERROR(empty());
  SALA_RETURN_IF_ERROR(begin());
  checkpoints_.forget_behind(0);
  shrink(0);
  set(0, 0, {});
  copies_.clear();
  poisoned_ = false;
  stop_requested_ = false;
  return success();
}

Status SessionCore::restore(std::span<const int32_t> tokens, int64_t past_length, int64_t prompt_length,
                            std::vector<float> logits) {
  SALA_RETURN_IF_ERROR(tokens_.claim(0, static_cast<int64_t>(tokens.size())));
  tokens_.assign(0, tokens);
  if (!tokens.empty()) pending_ = tokens.back();
  set(past_length, prompt_length, std::move(logits));
  return success();
}

void SessionCore::set(int64_t past_length, int64_t prompt_length, std::vector<float> logits) {
  ++changes_;
  past_length_ = past_length;
  state_length_ = past_length;
  copy_length_ = -1;
  ahead_ = {};
  prompt_length_ = prompt_length;
  has_logits_ = !logits.empty();
  if (has_logits_) logits_ = std::move(logits);
}

void SessionCore::shrink(int64_t to) {
  lookup_.cut(tokens_.view(), to);
  tokens_.shrink(to);
}

Expected<std::unique_ptr<SessionCore>> SessionCore::fork() const {
  SALA_RETURN_IF_ERROR(usable());
  auto made = allocate(model_, max_context_, chunk_tokens_, checkpoints_.most());
  if (!made) return made;
  SessionCore* other = made->get();
  SALA_RETURN_IF_ERROR(other->tokens_.share(tokens_));
  for (size_t i = 0; i < caches_.size(); ++i) {
    SALA_RETURN_IF_ERROR(
        model_->engine->memory().share(other->caches_[i].buffer, caches_[i].buffer, rows(i, 0, past_length_).parts()));
  }
  other->checkpoints_ = checkpoints_;
  other->pending_ = pending_;
  other->set(past_length_, prompt_length_, has_logits_ ? logits_ : std::vector<float>());
  return made;
}

Status SessionCore::keep_checkpoint(bool ends_turn) {
  if (!has_logits_ || checkpoints_.most() == 0) return success();
  if (checkpoints_.last() == past_length_) {
    if (ends_turn) checkpoints_.end_turn();
    return success();
  }
  SALA_RETURN_IF_ERROR(settle());
  auto made = make_checkpoint();
  if (!made) return made.error();
  checkpoints_.keep(*std::move(made), ends_turn);
  return success();
}

Expected<std::shared_ptr<const Checkpoint>> SessionCore::make_checkpoint() const {
  Checkpoint made{past_length_, prompt_length_, logits_, {}};
  for (size_t i = 0; i < caches_.size(); ++i) {
    if (model_->step.caches[i].rows != CacheRows::kAll) continue;
    std::vector<char>& state = made.states.emplace_back(static_cast<size_t>(rows(i, 0, past_length_).bytes));
    SALA_RETURN_IF_ERROR(
        model_->engine->memory().read(state.data(), caches_[i].buffer.data(), static_cast<int64_t>(state.size())));
  }
  return std::make_shared<const Checkpoint>(std::move(made));
}

Expected<std::shared_ptr<const Checkpoint>> SessionCore::checkpoint_at(int64_t position) const {
  if (auto kept = checkpoints_.at(position)) return kept;
  if (position > 0 && position == past_length_ && has_logits_) return make_checkpoint();
  std::string places;
  for (const int64_t each : checkpoints_.positions()) places += (places.empty() ? "" : ", ") + std::to_string(each);
  return error(ErrorCode::kInvalidArgument, "the session has no checkpoint at position ", position, ": ",
               places.empty() ? "it keeps none" : "it keeps some at " + places, ", and ",
               has_logits_ ? "stands at " + std::to_string(past_length_) : "there are no logits where it stands",
               "; choose one of these positions");
}

Expected<int64_t> SessionCore::rewind(int64_t to) {
  SALA_RETURN_IF_ERROR(usable());
  if (to < 0 || to > position()) {
    return error(ErrorCode::kInvalidArgument, "position is ", to, ", expected 0 to ", position(),
                 ", which is what the session holds");
  }
  if (to == position()) return to;
  if (to == past_length_ && has_logits_) {  // only the pending token goes
    shrink(to);
    prompt_length_ = std::min(prompt_length_, position());
    ++changes_;
    return to;
  }
  const auto checkpoint = checkpoints_.before(to);
  if (checkpoint == nullptr) {
    const std::span<const int64_t> kept = checkpoints_.positions();
    const std::string nearest =
        kept.empty() ? "it keeps none; prefill again after a reset"
                     : "the nearest is at " + std::to_string(kept.front()) + "; rewind to it, or reset the session";
    return error(ErrorCode::kInvalidArgument, "the session has no checkpoint at or before position ", to, ": ",
                 nearest);
  }
  SALA_RETURN_IF_ERROR(claim_for_step(0));  // the states, which a fork may share
  poisoned_ = true;                         // until the caches are those of the checkpoint
  SALA_RETURN_IF_ERROR(restore(*checkpoint));
  poisoned_ = false;
  return position();
}

Status SessionCore::restore(const Checkpoint& checkpoint) {
  Memory& memory = model_->engine->memory();
  auto state = checkpoint.states.begin();
  for (size_t i = 0; i < caches_.size(); ++i) {
    const CacheSpec& spec = model_->step.caches[i];
    Buffer& buffer = caches_[i].buffer;
    if (spec.rows == CacheRows::kAll) {
      SALA_RETURN_IF_ERROR(memory.write(buffer.data(), state->data(), static_cast<int64_t>(state->size())));
      ++state;
      continue;
    }
    for (ByteRange part : rows(i, checkpoint.past_length, std::max(past_length_, state_length_)).parts()) {
      if (part.offset == 0 && part.bytes > 0) part = {kFirstByte.bytes, part.bytes - kFirstByte.bytes};
      SALA_RETURN_IF_ERROR(memory.drop(buffer, part));
    }
  }
  checkpoints_.forget_behind(checkpoint.past_length);
  shrink(checkpoint.past_length);
  set(checkpoint.past_length, checkpoint.prompt_length, checkpoint.logits);
  return success();
}

}  // namespace sala
