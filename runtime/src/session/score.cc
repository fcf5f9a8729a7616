// Session::score: how probable the model found each token of a text.

#include <utility>

#include "sala/prefiller.h"
#include "sala/sampler.h"
#include "sala/session.h"
#include "session/session_core.h"
#include "session/text_scorer.h"

namespace sala {

Expected<TokenScores> Session::score(std::span<const int32_t> token_ids, const ScoreOptions& options) {
  SALA_RETURN_IF_ERROR(check_logprobs(options.top, "top"));
  TextScorer scorer(token_ids, options.top);
  PrefillOptions prefill{options.context_length, {}};
  prefill.on_progress = [&](const PrefillProgress& progress) {
    return scorer.outcome() && (!options.on_progress || options.on_progress(progress));
  };
  const auto count = static_cast<int64_t>(token_ids.size());
  auto prefiller = Prefiller::create(*core_, std::move(prefill), count);
  if (!prefiller) return prefiller.error();
  SALA_RETURN_IF_ERROR(core_->check_fits(core_->position(), count));
  SALA_RETURN_IF_ERROR(core_->check_tokens(token_ids));
  SALA_RETURN_IF_ERROR(scorer.begin(*core_, prefiller->options_));
  Status ran = prefiller->feed(token_ids);
  if (ran) {
    if (const auto logits = prefiller->finish(); !logits) ran = logits.error();
  }
  SALA_RETURN_IF_ERROR(scorer.outcome());
  SALA_RETURN_IF_ERROR(std::move(ran));
  return scorer.take();
}

}  // namespace sala
