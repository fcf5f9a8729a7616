#include "sala/session.h"

#include "sala/prefiller.h"
#include "sala/state_target.h"
#include "session/session_core.h"
#include "session/speculation.h"
#include "session/state_file.h"

namespace sala {

Status check_generate(const GenerateOptions& options, const ModelConfig& config) {
  SALA_RETURN_IF_ERROR(check(options.sampling));
  SALA_RETURN_IF_ERROR(check_bias_tokens(options.sampling, config.vocab_size));
  if (options.max_new_tokens < 0) {
    return error(ErrorCode::kInvalidArgument, "max_new_tokens is ", options.max_new_tokens, ", expected 0 or more");
  }
  SALA_RETURN_IF_ERROR(check_logprobs(options.logprobs.value_or(0)));
  if (const int64_t most = options.speculation.value_or(1); most < 1 || most > kMostDraftTokens) {
    return error(ErrorCode::kInvalidArgument, "speculation is ", most, ", expected 1 to ", kMostDraftTokens,
                 " tokens, or none to draft none");
  }
  for (const int32_t token : options.stop_tokens.value_or(std::vector<int32_t>())) {
    if (token < 0 || token >= config.vocab_size) {
      return error(ErrorCode::kInvalidArgument, "stop_tokens has ", token, ", expected 0 to ", config.vocab_size - 1,
                   ", the ids of this model's vocabulary");
    }
  }
  return success();
}

Session::Session(std::unique_ptr<SessionCore> core) : core_(std::move(core)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

int64_t Session::position() const { return core_->position(); }
int64_t Session::past_length() const { return core_->past_length(); }
int64_t Session::max_context() const { return core_->max_context(); }
int64_t Session::chunk_tokens() const { return core_->chunk_tokens(); }
std::span<const int32_t> Session::tokens() const { return core_->tokens(); }
std::span<const float> Session::logits() const { return core_->logits(); }

Expected<std::span<const float>> Session::prefill(std::span<const int32_t> token_ids, const PrefillOptions& options) {
  auto prefiller = Prefiller::create(*core_, options, static_cast<int64_t>(token_ids.size()));
  if (!prefiller) return prefiller.error();
  SALA_RETURN_IF_ERROR(prefiller->feed(token_ids));
  return prefiller->finish();
}

Expected<std::span<const float>> Session::decode(int32_t token_id) {
  auto prefiller = Prefiller::create(*core_, {}, 1);
  if (!prefiller) return prefiller.error();
  prefiller->is_decode_ = true;
  SALA_RETURN_IF_ERROR(prefiller->feed({&token_id, 1}));
  return prefiller->finish();
}

Expected<int32_t> Session::sample(const SamplingOptions& options) { return core_->sample(options); }

Expected<Generation> Session::generate(GenerateOptions options) {
  SALA_RETURN_IF_ERROR(core_->usable());
  SALA_RETURN_IF_ERROR(check_generate(options, core_->model().config));
  if (core_->position() == 0) {
    return error(ErrorCode::kNoLogits, "the context is empty: prefill a prompt before generating");
  }
  if (!options.stop_tokens) options.stop_tokens = core_->model().config.eos_token_ids;
  return Generation(*core_, std::move(options));
}

Status Session::save(StateTarget& target) const {
  SALA_RETURN_IF_ERROR(core_->usable());
  SALA_RETURN_IF_ERROR(core_->settle());
  return save_state(*target.file_, *core_);
}

Status Session::save(const std::filesystem::path& path) const {
  SALA_RETURN_IF_ERROR(core_->usable());
  auto target = StateTarget::open(path);
  if (!target) return target.error();
  return save(*target);
}

Expected<std::string> Session::save_rows(const std::filesystem::path& path, int64_t first, int64_t last) const {
  SALA_RETURN_IF_ERROR(core_->usable());
  if (first < 0 || first >= last || last > core_->past_length()) {
    return error(ErrorCode::kInvalidArgument, "first is ", first, " and last is ", last,
                 ", expected first before last, of the ", core_->past_length(), " tokens that have run");
  }
  auto target = StateTarget::open(path);
  if (!target) return target.error();
  return sala::save_rows(*target->file_, *core_, first, last);
}

Expected<std::string> Session::save_checkpoint(const std::filesystem::path& path, int64_t first,
                                               int64_t position) const {
  SALA_RETURN_IF_ERROR(core_->usable());
  SALA_RETURN_IF_ERROR(core_->settle());
  const auto checkpoint = core_->checkpoint_at(position);
  if (!checkpoint) return checkpoint.error();
  if (first < 0 || first > position) {
    return error(ErrorCode::kInvalidArgument, "first is ", first, ", expected 0 to ", position,
                 ", which is where the checkpoint is");
  }
  auto target = StateTarget::open(path);
  if (!target) return target.error();
  return sala::save_checkpoint(*target->file_, *core_, first, **checkpoint);
}

Status Session::require_room(int64_t tokens) const {
  if (const int64_t most = core_->max_context() - core_->position(); tokens < 0 || tokens > most) {
    return error(ErrorCode::kInvalidArgument, "tokens is ", tokens, ", expected 0 to ", most,
                 ", which is what max_context leaves");
  }
  return core_->require_room(tokens);
}

Expected<Session> Session::fork() const {
  SALA_RETURN_IF_ERROR(core_->usable());
  SALA_RETURN_IF_ERROR(core_->settle());
  auto core = core_->fork();
  if (!core) return core.error();
  return Session(*std::move(core));
}

Status Session::checkpoint() {
  SALA_RETURN_IF_ERROR(core_->usable());
  return core_->keep_checkpoint(true);
}

std::span<const int64_t> Session::checkpoints() const { return core_->checkpoints().positions(); }

Expected<int64_t> Session::rewind(int64_t position) { return core_->rewind(position); }

Status Session::reset() { return core_->reset(); }

void Session::stop() noexcept { core_->stop_requested() = true; }

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStopToken:
      return "stop_token";
    case FinishReason::kMaxNewTokens:
      return "max_new_tokens";
    case FinishReason::kMaxContext:
      return "max_context";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kNone:
      break;
  }
  return "none";
}

Generation::Generation(SessionCore& core, GenerateOptions options) : core_(&core), options_(std::move(options)) {
  if (options_.speculation) speculation_ = std::make_unique<Speculation>(*options_.speculation);
}

Generation::Generation(Generation&&) noexcept = default;
Generation& Generation::operator=(Generation&&) noexcept = default;
Generation::~Generation() = default;

SpeculationCounts Generation::speculation() const {
  if (speculation_ == nullptr) return {new_tokens_, 0, 0};
  return {new_tokens_, speculation_->drafted(), speculation_->accepted()};
}

bool Generation::wants_own_step() {
  return speculation_ != nullptr && core_->pending_token() && speculation_->wants_own_step(*core_, most_drafts());
}

bool Generation::goes_on() {
  logprobs_.reset();
  if (finish_reason_ != FinishReason::kNone) return false;
  if (new_tokens_ == options_.max_new_tokens) {
    finish_reason_ = FinishReason::kMaxNewTokens;
  } else if (core_->position() == core_->max_context()) {
    finish_reason_ = FinishReason::kMaxContext;
  }
  return finish_reason_ == FinishReason::kNone;
}

Expected<std::optional<int32_t>> Generation::next() {
  SALA_RETURN_IF_ERROR(core_->usable());
  if (!goes_on()) return std::optional<int32_t>();
  if (core_->pending_token()) SALA_RETURN_IF_ERROR(run_pending());
  return draw();
}

Status Generation::run_pending() {
  if (speculation_ != nullptr) return speculation_->step(*core_, most_drafts());
  const auto ran = core_->run_pending({});
  return ran ? success() : Status(ran.error());
}

Expected<std::optional<int32_t>> Generation::draw() {
  const auto token = sample();
  if (!token) return token.error();
  ++new_tokens_;
  if (speculation_ != nullptr) speculation_->end_turn();
  for (const int32_t stop : *options_.stop_tokens) {
    if (*token != stop) continue;
    finish_reason_ = FinishReason::kStopToken;
    return std::optional<int32_t>();
  }
  if (options_.logprobs) {
    auto logprobs = token_logprobs(core_->step_logits(), *token, *options_.logprobs);
    if (!logprobs) return logprobs.error();
    logprobs_ = *std::move(logprobs);
  }
  return std::optional<int32_t>(*token);
}

Expected<int32_t> Generation::sample() {
  TokenConstraint* constraint = options_.constraint.get();
  if (constraint == nullptr) return core_->sample(options_.sampling);
  // Whatever the code, it concerns no memory and no step, from which a batch would draw its conclusions.
  const auto own = [](const Error& reason) { return error(ErrorCode::kInvalidArgument, reason.message); };
  const auto allowed = constraint->allowed();
  if (!allowed) return own(allowed.error());
  const auto token = core_->sample(options_.sampling, *allowed);
  if (!token) return token;
  if (const Status taken = constraint->take(*token); !taken) return own(taken.error());
  return token;
}

}  // namespace sala
