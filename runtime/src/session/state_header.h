// Headers of saved sessions and of their parts, as state_file.h describes them.

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/file.h"
#include "base/safetensors.h"
#include "base/step_interface.h"
#include "sala/status.h"
#include "session/model_data.h"

namespace sala {

namespace state_names {
inline constexpr const char* kSha256 = "sha256";
inline constexpr const char* kTokenIds = "token_ids";
inline constexpr const char* kLogits = "logits";
}  // namespace state_names

/// What a file holds: all of a session, rows of it, or a checkpoint with the rows in front of it.
enum class StateKind { kSession, kRows, kCheckpoint };

/// The lengths that a file tells. What it holds is behind the first `first` tokens.
struct StateInfo {
  StateKind kind = StateKind::kSession;
  int64_t first = 0;
  int64_t position = 0;
  int64_t past_length = 0;
  int64_t prompt_length = 0;

  bool has_logits() const { return kind != StateKind::kRows && past_length == position && position > 0; }
  bool has_cache(const CacheSpec& spec) const { return kind != StateKind::kRows || spec.rows != CacheRows::kAll; }
};

/// What is wrong with files of a kind, and what to do.
const SafetensorsUse& use_of(StateKind kind);

/// A file that is open, and what its header says.
struct StateFile {
  /// Opens a file of this kind and model. All of it is checked but its hash and content.
  static Expected<StateFile> open(const std::filesystem::path& path, StateKind kind, const ModelData& model);

  File file;
  SafetensorsHeader header;
  StateInfo info;

  /// A field of the metadata, empty if it is not there.
  std::string value(const char* key) const;
  /// Null if it is not there.
  const SafetensorsTensor* tensor(std::string_view name) const;

  template <class... Parts>
  Error damaged(const Parts&... parts) const {
    const SafetensorsUse& use = use_of(info.kind);
    return error(use.damaged, file.path().string(), " is damaged: ", parts..., "; ", use.if_damaged);
  }
};

/// The header of a file, with zeros for its hash. Its tensors are in file order.
SafetensorsHeader describe_state(const ModelData& model, const StateInfo& info);

/// Bytes of a file with this header, whose text has `header_bytes`; -1 if they exceed the address space.
int64_t state_file_bytes(const SafetensorsHeader& header, size_t header_bytes);

/// Where the digits of the hash are in the text of a header; npos if they are not.
size_t place_of_hash(std::string_view header_text, std::string_view digits);

/// The digits that stand for those of the hash while it is taken.
std::string no_hash();

}  // namespace sala
