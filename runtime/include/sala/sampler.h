// Choosing the next token from logits.

#pragma once

#include <cstdint>
#include <span>

#include "sala/status.h"

namespace sala {

struct SamplingOptions {
  double temperature = 0.0;         // 0 always picks the most likely token
  int64_t top_k = 0;                // keep only the k most likely tokens, 0 keeps all
  double top_p = 1.0;               // keep the fewest tokens whose probabilities sum to at least this
  double repetition_penalty = 1.0;  // values above 1 make tokens of the context less likely; 0.01 to 100
  uint64_t seed = 0;
};

/// Checks options. kInvalidArgument naming the first one that is out of its range.
Status check(const SamplingOptions& options);

/// Samples one token.
///
/// 1. Repetition penalty r: the logit of every token that occurs in `context` is divided by r if positive, else
///    multiplied by r, in fp32.
/// 2. If temperature = 0, the token of the largest logit, the lowest id among equals. Otherwise weights
///    exp((logit - largest) / temperature) in fp64, ordered by falling logit, equal ones by rising id.
/// 3. top_k keeps the first top_k, top_p the shortest prefix whose weights sum to at least top_p of what top_k left.
/// 4. The token is the first whose running sum of weights exceeds u times the sum of all kept ones.
///
/// u = (w >> 11) / 2^53, where w is the first word of Philox4x64-10 with key (seed, 0) and counter
/// (context.size(), 0, 0, 0). So a seed gives the same text however generation is cut into calls, saved or restored.
///
/// Fails with kInvalidArgument for wrong options, kEngineFailed if a logit is NaN or the largest is infinite.
Expected<int32_t> sample(std::span<const float> logits, std::span<const int32_t> context,
                         const SamplingOptions& options);

}  // namespace sala
