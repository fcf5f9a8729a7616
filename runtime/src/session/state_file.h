// Sessions on disk.
//
// A state file is a safetensors file. Its metadata:
//
//   format       "sala-state"
//   version      "2"
//   sha256       hash of the whole file in which these 64 digits are zeros
//   model        fingerprint of the model
//   precision    type of the caches: "fp32" or "bf16"
//   past_length  tokens in the caches
//   prompt_length  tokens in front of the answer, in ten digits. Without it, all tokens are
//
// Its tensors: `token_ids` I32 [position], where position is past_length or, with a generated token that has not run
// yet, one more; `logits` F32 [vocab_size] if past_length is position and not 0; and every cache under the name by
// which it enters a step, with batch 1 and only its valid rows: past_length for keys and values, the complete windows
// for compressed keys, the whole of a lightning state. So a file fits a session of any capacity of at least `position`.

#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "base/replaced_file.h"
#include "sala/status.h"
#include "session/session_core.h"

namespace sala {

/// Replaces the file of `target` when the state is complete. After a failure that file is as it was.
Status save_state(ReplacedFile& target, const SessionCore& session);

/// Bytes of the file of a session whose `tokens` tokens have all run. kInvalidArgument for more than a session holds.
Expected<int64_t> state_bytes(const ModelData& model, int64_t tokens);

/// A session with the context of the file. Sizes, types and shapes are compared before anything is allocated, the hash
/// while the caches are filled.
Expected<std::unique_ptr<SessionCore>> restore_state(const std::filesystem::path& path,
                                                     std::shared_ptr<const ModelData> model,
                                                     const SessionOptions& options);

}  // namespace sala
