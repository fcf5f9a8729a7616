// Sessions on disk.
//
// A state file is a safetensors file. Its metadata:
//
//   format       "sala-state"
//   version      "1"
//   model        fingerprint of the model
//   precision    type of the caches: "fp32" or "bf16"
//   past_length  tokens in the caches
//
// Its tensors: `token_ids` I32 [position], where position is past_length or, with a generated token that has not run
// yet, one more; `logits` F32 [vocab_size] if past_length is position and not 0; and every cache under the name by
// which it enters a step, with batch 1 and only its valid rows: past_length for keys and values, the complete windows
// for compressed keys, the whole of a lightning state. So a file fits a session of any capacity of at least `position`.

#pragma once

#include <filesystem>
#include <memory>

#include "sala/status.h"
#include "session/session_core.h"

namespace sala {

/// Replaces `path` when the file is complete; on failure nothing is left behind.
Status save_state(const std::filesystem::path& path, const SessionCore& session);

/// A session with the context of the file. The file is checked whole before anything is allocated.
Expected<std::unique_ptr<SessionCore>> restore_state(const std::filesystem::path& path,
                                                     std::shared_ptr<const ModelData> model,
                                                     const SessionOptions& options);

}  // namespace sala
