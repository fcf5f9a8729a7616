// Choosing the next token from logits.

#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "sala/status.h"

namespace sala {

struct SamplingOptions {
  double temperature = 0.0;         // 0 always picks the most likely token
  int64_t top_k = 0;                // keep only the k most likely tokens, 0 keeps all
  double top_p = 1.0;               // keep the fewest tokens whose probabilities sum to at least this
  double repetition_penalty = 1.0;  // values above 1 make tokens of the context less likely; 0.01 to 100
  uint64_t seed = 0;
  double min_p = 0.0;              // keep tokens that are at least this times as probable as the likeliest; 0 to 1
  double frequency_penalty = 0.0;  // taken from the logit of a token for each time it is in the answer; -2 to 2
  double presence_penalty = 0.0;   // taken from the logit of a token that is in the answer; -2 to 2
  std::map<int32_t, double> logit_bias = {};  // added to the logits of these tokens; -100 to 100
};

/// Checks options. kInvalidArgument naming the first one that is out of its range. The tokens of
/// `logit_bias` are left to `check_bias_tokens`.
Status check(const SamplingOptions& options);

/// kInvalidArgument naming the first token of `logit_bias` that is outside the vocabulary.
Status check_bias_tokens(const SamplingOptions& options, int64_t vocab_size);

/// kInvalidArgument unless so many of the likeliest tokens may be asked for, 0 to kMostLogprobs. `name` is the option.
Status check_logprobs(int64_t top, std::string_view name = "logprobs");

/// Samples one token.
///
/// The answer is `context` behind its first `prompt_length` tokens.
///
/// 1. Bias: logit + bias for every token of `logit_bias`, in fp64, rounded to fp32.
/// 2. Repetition penalty r: the logit of every token that occurs in `context` is divided by r if positive, else
///    multiplied by r, in fp32.
/// 3. Frequency penalty f and presence penalty p: logit - (f * n + p) for every token that occurs n > 0 times in the
///    answer, in fp64, rounded to fp32.
/// 4. Constraint: if `allowed` has words, every token i goes for which bit i % 32 of word i / 32 is 0 or that word is
///    missing.
/// 5. If temperature = 0, the token of the largest logit, the lowest id among equals. Otherwise weights
///    exp((logit - largest) / temperature) in fp64, ordered by falling logit, equal ones by rising id.
/// 6. top_k keeps the first top_k, top_p the shortest prefix whose weights sum to at least top_p of what top_k left,
///    min_p of these the ones whose weight is at least min_p. The largest weight is 1.
/// 7. The token is the first whose running sum of weights exceeds u times the sum of all kept ones.
///
/// Steps 1 to 3 are in the order of vLLM, those of step 6 in the order of Hugging Face transformers.
///
/// u = (w >> 11) / 2^53, where w is the first word of Philox4x64-10 with key (seed, 0) and counter
/// (context.size(), 0, 0, 0). So a seed gives the same text however generation is cut into calls, saved or restored.
///
/// Fails with kInvalidArgument for wrong options, a `prompt_length` beyond `context`, or if no token is allowed, and
/// with kEngineFailed if a logit is NaN or the largest that is left is infinite.
Expected<int32_t> sample(std::span<const float> logits, std::span<const int32_t> context,
                         const SamplingOptions& options, size_t prompt_length = 0,
                         std::span<const uint32_t> allowed = {});

/// How probable the model found a token, and which ones it found the likeliest.
struct TokenLogprobs {
  double logprob;                               // natural logarithm of the token's probability
  std::vector<std::pair<int32_t, double>> top;  // the likeliest tokens with theirs, equal ones by rising id
};

constexpr int64_t kMostLogprobs = 20;

/// Log-probabilities by the model's own logits, whatever `sample` makes of them:
///
///   logprob(t) = logit(t) - m - log(sum over all v of exp(logit(v) - m)), in fp64, where m is the largest logit.
///
/// That of a token whose logit is -inf is -inf. `top` of them are listed, or all tokens if these are fewer. Fails with
/// kInvalidArgument for a `top` outside 0 to kMostLogprobs or a token outside the vocabulary, and with kEngineFailed as
/// `sample`.
Expected<TokenLogprobs> token_logprobs(std::span<const float> logits, int32_t token, int64_t top);

}  // namespace sala
