// Names of what enters and leaves a step, as graphs, engines, bundles and state files have them.
//
// In Python they stand in sala_export/model/signature.py and, for the profiles, in sala_export/engine/profiles.py.
// tests/runtime/test_step_names.py compares the two.

#pragma once

#include <string_view>

namespace sala::step_names {

// Inputs of a step's tokens.
constexpr std::string_view kInputIds = "input_ids";            // int64 [batch, tokens]
constexpr std::string_view kPastLength = "past_length";        // int32 [batch]
constexpr std::string_view kContextLength = "context_length";  // int32 [batch]
constexpr std::string_view kRopeCosSin = "rope_cos_sin";       // fp32 [batch, tokens, head_dim]
constexpr std::string_view kLogitRows = "logit_rows";          // int32 [rows], of the step's batch * tokens

constexpr std::string_view kLogits = "logits";  // output, fp32 [rows, vocab_size]

// A cache enters as `past_key_values.{layer}.{role}` and leaves as `present.{layer}.{role}`.
constexpr std::string_view kPast = "past_key_values.";
constexpr std::string_view kPresent = "present.";

// Symbolic dimensions: sequences, tokens of the step, tokens whose logits it gives, tokens and compressed keys that the
// caches can hold.
constexpr std::string_view kBatch = "batch";
constexpr std::string_view kTokens = "tokens";
constexpr std::string_view kRows = "rows";
constexpr std::string_view kCapacity = "capacity";
constexpr std::string_view kCapacityK1 = "capacity_k1";
constexpr std::string_view kCapacityK2 = "capacity_k2";

// Profiles of an engine.
constexpr std::string_view kPrefill = "prefill";
constexpr std::string_view kDecode = "decode";

}  // namespace sala::step_names
