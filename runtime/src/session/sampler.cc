#include "sala/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

namespace sala {

namespace {

/// First word of Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3") for one counter word.
uint64_t philox(uint64_t key, uint64_t counter) {
  constexpr uint64_t kMultiplier0 = 0xD2E7470EE14C6C93, kMultiplier1 = 0xCA5A826395121157;
  constexpr uint64_t kWeyl0 = 0x9E3779B97F4A7C15, kWeyl1 = 0xBB67AE8584CAA73B;
  std::array<uint64_t, 4> x = {counter, 0, 0, 0};
  uint64_t key0 = key, key1 = 0;
  for (int round = 0; round < 10; ++round) {
    const auto product0 = static_cast<unsigned __int128>(kMultiplier0) * x[0];
    const auto product1 = static_cast<unsigned __int128>(kMultiplier1) * x[2];
    x = {static_cast<uint64_t>(product1 >> 64) ^ x[1] ^ key0, static_cast<uint64_t>(product1),
         static_cast<uint64_t>(product0 >> 64) ^ x[3] ^ key1, static_cast<uint64_t>(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return x[0];
}

double uniform(uint64_t seed, uint64_t counter) { return static_cast<double>(philox(seed, counter) >> 11) * 0x1p-53; }

struct Candidate {
  float logit;
  int32_t token;

  /// By falling logit, equal ones by rising id.
  bool before(const Candidate& other) const { return logit != other.logit ? logit > other.logit : token < other.token; }
};

bool is_before(const Candidate& a, const Candidate& b) { return a.before(b); }

/// Candidates in order, sorted only as far as they are taken: most draws end after a few of 70,000.
class Ranking {
 public:
  Ranking(std::vector<Candidate> all, double largest, double temperature)
      : heap_(std::move(all)), end_(heap_.size()), largest_(largest), temperature_(temperature) {
    std::make_heap(heap_.begin(), heap_.end(), after);
  }

  double weight(const Candidate& candidate) const {
    return std::exp((static_cast<double>(candidate.logit) - largest_) / temperature_);
  }

  /// Sum of the weights of all candidates.
  double total() const {
    double sum = 0.0;
    for (const Candidate& candidate : heap_) sum += weight(candidate);
    return sum;
  }

  size_t size() const { return heap_.size(); }

  /// The candidate of a rank. Ranks are first asked for in order.
  const Candidate& at(size_t rank) {
    while (heap_.size() - end_ <= rank) {
      std::pop_heap(heap_.begin(), heap_.begin() + static_cast<std::ptrdiff_t>(end_), after);
      --end_;
    }
    return heap_[heap_.size() - 1 - rank];
  }

 private:
  static bool after(const Candidate& a, const Candidate& b) { return b.before(a); }

  std::vector<Candidate> heap_;  // a heap up to end_, then the taken ones, best last
  size_t end_;
  double largest_;
  double temperature_;
};

void penalise(std::span<const int32_t> context, double penalty, std::vector<Candidate>& all) {
  std::vector<bool> seen(all.size());
  for (const int32_t token : context) {
    if (token < 0 || static_cast<size_t>(token) >= all.size() || seen[static_cast<size_t>(token)]) continue;
    seen[static_cast<size_t>(token)] = true;
    float& logit = all[static_cast<size_t>(token)].logit;
    logit = logit > 0 ? logit / static_cast<float>(penalty) : logit * static_cast<float>(penalty);
  }
}

void add_bias(const std::map<int32_t, double>& bias, std::vector<Candidate>& all) {
  for (const auto& [token, value] : bias) {
    float& logit = all[static_cast<size_t>(token)].logit;
    logit = static_cast<float>(logit + value);
  }
}

void penalise_answer(std::span<const int32_t> answer, const SamplingOptions& options, std::vector<Candidate>& all) {
  std::vector<int64_t> counts(all.size());
  for (const int32_t token : answer) {
    if (token >= 0 && static_cast<size_t>(token) < all.size()) ++counts[static_cast<size_t>(token)];
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (counts[i] == 0) continue;
    const double penalty = options.frequency_penalty * static_cast<double>(counts[i]) + options.presence_penalty;
    all[i].logit = static_cast<float>(all[i].logit - penalty);
  }
}

/// The model's own logits.
Expected<std::vector<Candidate>> candidates(std::span<const float> logits) {
  std::vector<Candidate> all(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) {
      return error(ErrorCode::kEngineFailed, "logit ", i, " is NaN: the weights or the engine are broken");
    }
    all[i] = {logits[i], static_cast<int32_t>(i)};
  }
  return all;
}

bool is_allowed(std::span<const uint32_t> allowed, int32_t token) {
  const auto word = static_cast<size_t>(token) / 32;
  return word < allowed.size() && (allowed[word] >> (token % 32) & 1) != 0;
}

/// The logits as they are drawn from.
Expected<std::vector<Candidate>> candidates(std::span<const float> logits, std::span<const int32_t> context,
                                            const SamplingOptions& options, size_t prompt_length,
                                            std::span<const uint32_t> allowed) {
  auto made = candidates(logits);
  if (!made) return made;
  std::vector<Candidate>& all = *made;
  add_bias(options.logit_bias, all);
  if (options.repetition_penalty != 1.0) penalise(context, options.repetition_penalty, all);
  const bool counts = options.frequency_penalty != 0.0 || options.presence_penalty != 0.0;
  if (counts && prompt_length < context.size()) penalise_answer(context.subspan(prompt_length), options, all);
  if (!allowed.empty()) {
    std::erase_if(all, [&](const Candidate& each) { return !is_allowed(allowed, each.token); });
    if (all.empty()) {
      return error(ErrorCode::kInvalidArgument,
                   "the constraint allows no token here: let it allow a stop token where the text may end");
    }
  }
  return made;
}

/// The token that comes first in the order of a ranking. kEngineFailed if its logit is infinite.
Expected<Candidate> likeliest(std::span<const Candidate> all) {
  const Candidate best = *std::min_element(all.begin(), all.end(), is_before);
  if (std::isinf(best.logit)) {
    return error(ErrorCode::kEngineFailed, "the largest logit is infinite: the weights or the engine are broken");
  }
  return best;
}

int32_t draw(Ranking& ranking, double u, const SamplingOptions& options) {
  size_t kept = ranking.size();
  double total;
  if (options.top_k > 0 && static_cast<size_t>(options.top_k) < kept) {
    kept = static_cast<size_t>(options.top_k);
    total = 0.0;
    for (size_t rank = 0; rank < kept; ++rank) total += ranking.weight(ranking.at(rank));
  } else {
    total = ranking.total();
  }
  if (options.top_p < 1.0) {
    double sum = 0.0;
    size_t rank = 0;
    while (rank < kept && sum < options.top_p * total) sum += ranking.weight(ranking.at(rank++));
    kept = rank;
    total = sum;
  }
  if (options.min_p > 0.0) {
    double sum = 0.0;
    size_t rank = 0;
    while (rank < kept && ranking.weight(ranking.at(rank)) >= options.min_p) {
      sum += ranking.weight(ranking.at(rank++));
    }
    kept = rank;
    total = sum;
  }
  double sum = 0.0;
  for (size_t rank = 0; rank + 1 < kept; ++rank) {
    sum += ranking.weight(ranking.at(rank));
    if (sum > u * total) return ranking.at(rank).token;
  }
  return ranking.at(kept - 1).token;
}

}  // namespace

Status check(const SamplingOptions& options) {
  const auto wrong = [](std::string_view name, double value, std::string_view expected) {
    return error(ErrorCode::kInvalidArgument, name, " is ", value, ", expected ", expected);
  };
  if (!(std::isfinite(options.temperature) && options.temperature >= 0)) {
    return wrong("temperature", options.temperature, "0 for the most likely token, or a finite number above it");
  }
  if (options.top_k < 0) return wrong("top_k", static_cast<double>(options.top_k), "0 for all tokens, or a count");
  if (!(options.top_p > 0 && options.top_p <= 1)) return wrong("top_p", options.top_p, "more than 0 and at most 1");
  // Beyond, logits of a sound engine would overflow fp32.
  if (!(options.repetition_penalty >= 0.01 && options.repetition_penalty <= 100)) {
    return wrong("repetition_penalty", options.repetition_penalty, "0.01 to 100, 1 for none");
  }
  if (!(options.min_p >= 0 && options.min_p <= 1)) return wrong("min_p", options.min_p, "0 to 1, 0 for all tokens");
  for (const auto& [name, value] : {std::pair("frequency_penalty", options.frequency_penalty),
                                    std::pair("presence_penalty", options.presence_penalty)}) {
    if (!(value >= -2 && value <= 2)) return wrong(name, value, "-2 to 2, 0 for none");
  }
  for (const auto& [token, bias] : options.logit_bias) {
    if (!(bias >= -100 && bias <= 100)) {
      return error(ErrorCode::kInvalidArgument, "logit_bias of token ", token, " is ", bias, ", expected -100 to 100");
    }
  }
  return success();
}

Status check_logprobs(int64_t top, std::string_view name) {
  if (top >= 0 && top <= kMostLogprobs) return success();
  return error(ErrorCode::kInvalidArgument, name, " is ", top, ", expected 0 to ", kMostLogprobs);
}

Status check_bias_tokens(const SamplingOptions& options, int64_t vocab_size) {
  for (const auto& [token, bias] : options.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return error(ErrorCode::kInvalidArgument, "logit_bias has token ", token, ", expected 0 to ", vocab_size - 1,
                   ", the ids of this model's vocabulary");
    }
  }
  return success();
}

Expected<int32_t> sample(std::span<const float> logits, std::span<const int32_t> context,
                         const SamplingOptions& options, size_t prompt_length, std::span<const uint32_t> allowed) {
  SALA_RETURN_IF_ERROR(check(options));
  if (logits.empty()) return error(ErrorCode::kInvalidArgument, "there are no logits to sample from");
  SALA_RETURN_IF_ERROR(check_bias_tokens(options, static_cast<int64_t>(logits.size())));
  if (prompt_length > context.size()) {
    return error(ErrorCode::kInvalidArgument, "prompt_length is ", prompt_length, ", the context has ", context.size(),
                 " tokens");
  }
  auto all = candidates(logits, context, options, prompt_length, allowed);
  if (!all) return all.error();
  const auto best = likeliest(*all);
  if (!best) return best.error();
  if (options.temperature == 0.0) return best->token;
  Ranking ranking(*std::move(all), best->logit, options.temperature);
  return draw(ranking, uniform(options.seed, context.size()), options);
}

Expected<TokenLogprobs> token_logprobs(std::span<const float> logits, int32_t token, int64_t top) {
  SALA_RETURN_IF_ERROR(check_logprobs(top));
  if (token < 0 || static_cast<size_t>(token) >= logits.size()) {
    return error(ErrorCode::kInvalidArgument, "token is ", token, ", and there are ", logits.size(), " logits");
  }
  auto all = candidates(logits);
  if (!all) return all.error();
  const auto best = likeliest(*all);
  if (!best) return best.error();
  const auto largest = static_cast<double>(best->logit);
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  const auto logprob = [&](float logit) { return static_cast<double>(logit) - largest - std::log(sum); };
  TokenLogprobs result{logprob(logits[static_cast<size_t>(token)]), {}};
  const auto end = all->begin() + std::min<std::ptrdiff_t>(top, std::ssize(*all));
  std::partial_sort(all->begin(), end, all->end(), is_before);
  for (auto each = all->begin(); each != end; ++each) result.top.emplace_back(each->token, logprob(each->logit));
  return result;
}

}  // namespace sala
