#include "session/batch_slots.h"

#include <algorithm>
#include <string>
#include <utility>

#include "session/rope.h"

namespace sala {

namespace {

std::string or_larger(const EngineLimits& limits) {
  return limits.larger_batch.empty() ? "" : ", or " + std::string(limits.larger_batch);
}

}  // namespace

Status BatchSlots::check(const ModelData& model, const SessionCore& session) {
  const EngineLimits limits = model.engine->limits();
  if (limits.max_batch == 1) {
    return error(ErrorCode::kInvalidArgument, "runtime ", model.engine->name(),
                 " serves one session a step: generate with one session after the other", or_larger(limits));
  }
  const int64_t page = model.engine->memory().page_bytes();
  if (page == 1) {
    return error(ErrorCode::kInvalidArgument,
                 "caches that do not grow by pages cannot stand side by side: generate with one session after the "
                 "other, or load the model without an allocator of your own");
  }
  for (size_t i = 0; i < session.caches().size(); ++i) {
    const CacheSpec& spec = model.step.caches[i];
    const int64_t bytes = bytes_of(spec.past.dtype, elements_of(session.caches()[i].shape));
    if (spec.rows == CacheRows::kAll || bytes % page == 0) continue;
    // The engine was built for smaller pages, or for no batches.
    return error(ErrorCode::kInvalidArgument, "cache ", spec.past.name, " of max_context ", session.max_context(),
                 " has ", bytes, " bytes, which does not end where a page of ", page,
                 " bytes does, so sessions cannot stand side by side: choose a smaller max_context, or generate with "
                 "one session after the other");
  }
  return success();
}

Expected<std::unique_ptr<BatchSlots>> BatchSlots::create(std::shared_ptr<const ModelData> model, int64_t most,
                                                         const SessionCore& like) {
  SALA_RETURN_IF_ERROR(check(*model, like));
  const EngineLimits limits = model->engine->limits();
  if (most > limits.max_batch) {
    return error(ErrorCode::kInvalidArgument, "the batch has ", most, " sessions, and runtime ", model->engine->name(),
                 " serves at most ", limits.max_batch, " a step: give it fewer", or_larger(limits));
  }
  std::unique_ptr<BatchSlots> slots(new BatchSlots(std::move(model)));
  SALA_RETURN_IF_ERROR(slots->reserve(most, like));
  return slots;
}

BatchSlots::~BatchSlots() {
  while (!sessions_.empty()) static_cast<void>(leave(*sessions_.back()));
}

Status BatchSlots::reserve(int64_t most, const SessionCore& like) {
  Memory& memory = model_->engine->memory();
  for (size_t i = 0; i < like.caches().size(); ++i) {
    const SessionCore::Cache& cache = like.caches()[i];
    const int64_t bytes = most * bytes_of(model_->step.caches[i].past.dtype, elements_of(cache.shape));
    auto buffer = memory.allocate(bytes);
    if (!buffer) return buffer.error();
    caches_.push_back({*std::move(buffer), cache.shape});
    if (!has_rows(i)) SALA_RETURN_IF_ERROR(memory.claim(caches_.back().buffer, {0, bytes}));
  }
  executions_.resize(static_cast<size_t>(most));
  logits_.resize(static_cast<size_t>(most * model_->config.vocab_size));
  return success();
}

char* BatchSlots::slot(size_t cache, size_t index) const {
  const int64_t bytes = bytes_of(model_->step.caches[cache].past.dtype, elements_of(caches_[cache].shape));
  return static_cast<char*>(caches_[cache].buffer.data()) + static_cast<int64_t>(index) * bytes;
}

Status BatchSlots::join(SessionCore& session) {
  SALA_RETURN_IF_ERROR(session.usable());
  // States of its own, so that they find room when they come back.
  SALA_RETURN_IF_ERROR(session.claim(session.past_length(), 0));
  SALA_RETURN_IF_ERROR(place(session, sessions_.size()));
  sessions_.push_back(&session);
  return success();
}

Status BatchSlots::place(SessionCore& session, size_t index) {
  Status placed = success();
  size_t shown = 0;
  for (; placed && shown < caches_.size(); shown += placed ? 1 : 0) {
    if (!has_rows(shown)) continue;
    const int64_t offset = slot(shown, index) - static_cast<char*>(caches_[shown].buffer.data());
    placed = model_->engine->memory().show(session.caches()[shown].buffer, caches_[shown].buffer, offset);
  }
  if (placed) placed = copy_states(session, index, true);
  // Only what was shown here: a buffer may be in another batch.
  if (!placed) SALA_RETURN_IF_ERROR(hide(session, shown));
  return placed;
}

Status BatchSlots::take_out(SessionCore& session, size_t index) {
  SALA_RETURN_IF_ERROR(hide(session, caches_.size()));
  return copy_states(session, index, false);
}

Status BatchSlots::hide(SessionCore& session, size_t caches) {
  for (size_t i = 0; i < caches; ++i) {
    if (has_rows(i)) SALA_RETURN_IF_ERROR(model_->engine->memory().hide(session.caches()[i].buffer));
  }
  return success();
}

Status BatchSlots::copy_states(SessionCore& session, size_t index, bool into_slot) {
  for (size_t i = 0; i < caches_.size(); ++i) {
    if (has_rows(i)) continue;
    void* own = session.caches()[i].buffer.data();
    void* to = into_slot ? slot(i, index) : own;
    const void* from = into_slot ? own : slot(i, index);
    SALA_RETURN_IF_ERROR(model_->engine->memory().copy(to, from, slot(i, 1) - slot(i, 0)));
  }
  return success();
}

Status BatchSlots::leave(SessionCore& session) {
  const auto found = std::ranges::find(sessions_, &session);
  if (found == sessions_.end()) return success();
  const auto index = static_cast<size_t>(found - sessions_.begin());
  Status left = take_out(session, index);
  if (!left) left = session.lose(left.error());
  // The last one moves into the gap.
  SessionCore* last = sessions_.back();
  sessions_.pop_back();
  if (last == &session) return left;
  sessions_[index] = last;
  Status moved = take_out(*last, sessions_.size());
  if (moved) moved = place(*last, index);
  if (!moved) static_cast<void>(lose_all(moved.error()));
  return left;
}

bool BatchSlots::has(const SessionCore& session) const {
  return std::ranges::find(sessions_, &session) != sessions_.end();
}

bool BatchSlots::fits(const SessionCore& session) const {
  return std::ranges::equal(session.caches(), caches_, {}, &SessionCore::Cache::shape, &SessionCore::Cache::shape);
}

Status BatchSlots::lose_all(const Error& reason) {
  Error lost = reason;
  for (SessionCore* session : sessions_) {
    lost = session->lose(reason);
    static_cast<void>(hide(*session, caches_.size()));  // its pages go when it is reset
  }
  sessions_.clear();
  return lost;
}

Status BatchSlots::step(std::span<SessionCore* const> sessions, std::span<Status> outcomes) {
  for (size_t i = 0; i < sessions.size(); ++i) {
    outcomes[i] = sessions[i]->claim_for_step(1);
    if (outcomes[i]) continue;
    if (outcomes[i].error().code != ErrorCode::kOutOfMemory) return lose_all(outcomes[i].error());
    if (const Status left = leave(*sessions[i]); !left) outcomes[i] = left;
  }
  if (sessions_.empty()) return success();
  const auto engine = execution(sessions_.size());
  for (size_t i = 0; i < sessions.size() && !engine; ++i) {
    if (!has(*sessions[i])) continue;
    const Status left = leave(*sessions[i]);
    outcomes[i] = left ? Status(engine.error()) : left;
  }
  if (!engine) return success();
  for (SessionCore* session : sessions_) session->begin_step();
  const Status ran = run(**engine);
  return ran ? ran : lose_all(ran.error());
}

Status BatchSlots::run(Execution& engine) {
  const size_t batch = sessions_.size();
  const size_t width = 2 * model_->config.inv_freq.size();
  const auto vocab_size = static_cast<size_t>(model_->config.vocab_size);
  input_ids_.clear();
  past_lengths_.clear();
  context_lengths_.clear();
  logit_rows_.clear();
  rope_cos_sin_.resize(batch * width);
  for (size_t i = 0; i < batch; ++i) {
    const SessionCore& session = *sessions_[i];
    input_ids_.push_back(*session.pending_token());
    past_lengths_.push_back(static_cast<int32_t>(session.past_length()));
    context_lengths_.push_back(static_cast<int32_t>(session.position()));
    logit_rows_.push_back(static_cast<int32_t>(i));
    rope_cos_sin(session.past_length(), model_->config.inv_freq, std::span(rope_cos_sin_).subspan(i * width, width));
  }
  const std::span logits = std::span(logits_).first(batch * vocab_size);
  SALA_RETURN_IF_ERROR(
      engine.run(Profile::kDecode, {input_ids_, past_lengths_, context_lengths_, rope_cos_sin_, logit_rows_}, logits));
  for (size_t i = 0; i < batch; ++i) {
    SessionCore& session = *sessions_[i];
    const int32_t token = *session.pending_token();
    std::ranges::copy(logits.subspan(i * vocab_size, vocab_size), session.step_logits().begin());
    session.end_step({&token, 1});
  }
  return success();
}

Expected<Execution*> BatchSlots::execution(size_t batch) {
  // One session runs on the addresses of its slot too, where its state is.
  std::unique_ptr<Execution>& made = executions_[batch - 1];
  if (made != nullptr) return made.get();
  std::vector<CacheBinding> bindings;
  for (size_t i = 0; i < caches_.size(); ++i) {
    const CacheSpec& spec = model_->step.caches[i];
    Shape shape = caches_[i].shape;
    shape[0] = static_cast<int64_t>(batch);
    bindings.push_back({spec.past.name, spec.present_name, spec.past.dtype, shape, caches_[i].buffer.data()});
  }
  auto created = model_->engine->create_execution(bindings, CacheContents::kInUse);
  if (!created) return created.error();
  made = *std::move(created);
  return made.get();
}

}  // namespace sala
