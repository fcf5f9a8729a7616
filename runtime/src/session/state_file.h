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
//
// A state in parts is files of the same kind that each hold what is behind the first `first` tokens, so that sessions
// can have parts in common. Their metadata has the fields above but for the lengths, and version "1". A file of the
// same content is the same file, whatever session it came from.
//
//   rows         format "sala-state-rows", `first` and `last`. Tensors: `token_ids` I32 [last - first], and of every
//                cache that has rows those that steps write between contexts of `first` and `last` tokens. There may
//                be none, then the tensor has an extent of 0
//   checkpoint   format "sala-state-checkpoint", `first`, `past_length` and `prompt_length`. Tensors: the same from
//                `first` to `past_length`, `logits` behind `token_ids`, and the whole of every lightning state

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

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

/// Saves the rows part of tokens `first` to `last`, which have run, and returns its hash.
Expected<std::string> save_rows(ReplacedFile& target, const SessionCore& session, int64_t first, int64_t last);

/// Saves the checkpoint part, from `first` on, of a checkpoint of the session, and returns its hash.
Expected<std::string> save_checkpoint(ReplacedFile& target, const SessionCore& session, int64_t first,
                                      const Checkpoint& checkpoint);

/// A session with the context of parts: of rows one behind the other, and of the checkpoint behind them. Before
/// anything is allocated the checkpoint is checked as a state file is.
Expected<std::unique_ptr<SessionCore>> restore_parts(std::span<const std::filesystem::path> rows,
                                                     const std::filesystem::path& checkpoint,
                                                     std::shared_ptr<const ModelData> model,
                                                     const SessionOptions& options,
                                                     const std::function<bool(size_t part)>& on_part);

}  // namespace sala
