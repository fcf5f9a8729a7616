#include "session/state_file.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "base/sha256.h"
#include "session/state_header.h"

namespace sala {

using namespace state_names;

namespace {

constexpr int64_t kStagingBytes = int64_t{4} << 20;
const std::string kNoHash = no_hash();

/// Writes a state, and hashes what it writes. Logits and states are those of the checkpoint, if there is one.
class Writer {
 public:
  Writer(ReplacedFile& file, const SessionCore& session, const StateInfo& info, const Checkpoint* checkpoint = nullptr)
      : file_(file), session_(session), info_(info), checkpoint_(checkpoint) {}

  /// Returns the hash.
  Expected<std::string> run() {
    auto written = write_all();
    if (!written) file_.abandon();
    return written;
  }

 private:
  Expected<std::string> write_all() {
    SafetensorsHeader header = describe_state(session_.model(), info_);
    const std::string text = write_safetensors_header(header);
    SALA_RETURN_IF_ERROR(file_.require_allowed(state_file_bytes(header, text.size())));
    SALA_RETURN_IF_ERROR(file_.begin());
    SALA_RETURN_IF_ERROR(write(text.data(), text.size()));
    SALA_RETURN_IF_ERROR(write(tokens().data(), tokens().size_bytes()));
    if (info_.has_logits()) {
      const std::span<const float> logits = checkpoint_ != nullptr ? checkpoint_->logits : session_.logits();
      SALA_RETURN_IF_ERROR(write(logits.data(), logits.size_bytes()));
    }
    SALA_RETURN_IF_ERROR(write_caches());
    const std::string digits = hash_.finish();
    const auto place = static_cast<int64_t>(place_of_hash(text, kNoHash));
    SALA_RETURN_IF_ERROR(file_.write_at(place, digits.data(), static_cast<int64_t>(digits.size())));
    SALA_RETURN_IF_ERROR(file_.commit());
    return digits;
  }

  /// Those of the file. A child of `fork` sees none, and the read of a cache that follows fails there.
  std::span<const int32_t> tokens() const {
    const auto all = session_.tokens();
    const auto behind = all.subspan(std::min(static_cast<size_t>(info_.first), all.size()));
    return behind.first(std::min(static_cast<size_t>(info_.position - info_.first), behind.size()));
  }

  Status write(const void* from, size_t bytes) {
    hash_.update({static_cast<const char*>(from), bytes});
    return file_.write(from, static_cast<int64_t>(bytes));
  }

  Status write_caches() {
    size_t state = 0;
    for (size_t i = 0; i < session_.caches().size(); ++i) {
      const CacheSpec& spec = session_.model().step.caches[i];
      if (!info_.has_cache(spec)) continue;
      if (checkpoint_ != nullptr && spec.rows == CacheRows::kAll) {
        const std::vector<char>& kept = checkpoint_->states[state++];
        SALA_RETURN_IF_ERROR(write(kept.data(), kept.size()));
      } else {
        SALA_RETURN_IF_ERROR(write_cache(i));
      }
    }
    return success();
  }

  Status write_cache(size_t index) {
    Memory& memory = session_.model().engine->memory();
    for (const ByteRange& part : session_.rows(index, info_.first, info_.past_length).parts()) {
      const char* from = static_cast<const char*>(session_.caches()[index].buffer.data()) + part.offset;
      for (int64_t done = 0; done < part.bytes;) {
        const int64_t bytes = std::min(kStagingBytes, part.bytes - done);
        SALA_RETURN_IF_ERROR(memory.read(staging_.get(), from + done, bytes));
        SALA_RETURN_IF_ERROR(write(staging_.get(), static_cast<size_t>(bytes)));
        done += bytes;
      }
    }
    return success();
  }

  ReplacedFile& file_;
  const SessionCore& session_;
  const StateInfo info_;
  const Checkpoint* checkpoint_;
  Sha256 hash_;
  std::unique_ptr<char[]> staging_ = std::make_unique_for_overwrite<char[]>(kStagingBytes);
};

/// A new session that has room for the context of a file.
Expected<std::unique_ptr<SessionCore>> session_for(const StateFile& state, std::shared_ptr<const ModelData> model,
                                                   const SessionOptions& options) {
  SessionOptions chosen = options;
  const int64_t position = state.info.position;
  if (!chosen.max_context) {
    const int64_t most = model->engine->limits().max_context;
    chosen.max_context = std::clamp(position, std::min(model->config.max_position_embeddings, most), most);
  }
  if (*chosen.max_context < position) {
    return error(ErrorCode::kContextExceeded, state.file.path().string(), " holds ", position,
                 " tokens, max_context is ", *chosen.max_context, ": choose at least as many");
  }
  return SessionCore::create(std::move(model), chosen);
}

/// What a file holds besides caches.
struct StateContent {
  std::vector<int32_t> tokens;
  std::vector<float> logits;
};

/// Reads a checked file into a new session, from its first byte to its last, and compares their hash.
class Reader {
 public:
  explicit Reader(const StateFile& state) : state_(state) {}

  /// Hashes the header, with zeros for the digits of the hash.
  Status begin() {
    std::string text(static_cast<size_t>(state_.header.data_start), '\0');
    SALA_RETURN_IF_ERROR(state_.file.read(0, text.data(), state_.header.data_start));
    const std::string digits = state_.value(kSha256);
    const size_t place = digits.size() != kNoHash.size() ? std::string::npos : place_of_hash(text, digits);
    if (place == std::string::npos) return damaged("its header has no SHA-256");
    hash_.update(text.replace(place, kNoHash.size(), kNoHash));
    offset_ = state_.header.data_start;
    return success();
  }

  /// Fills the caches of a session whose context ends where that of the file begins, and returns the rest.
  Expected<StateContent> fill(SessionCore& session) {
    StateContent content;
    const StateInfo& info = state_.info;
    SALA_RETURN_IF_ERROR(read_vector(kTokenIds, content.tokens));
    SALA_RETURN_IF_ERROR(session.claim(info.first, info.past_length - info.first));
    if (info.has_logits()) SALA_RETURN_IF_ERROR(read_vector(kLogits, content.logits));
    for (size_t i = 0; i < session.caches().size(); ++i) {
      if (info.has_cache(session.model().step.caches[i])) SALA_RETURN_IF_ERROR(read_cache(session, i));
    }
    if (hash_.finish() != state_.value(kSha256)) {
      return damaged("a bit or more of it has changed, its SHA-256 is another");
    }
    if (!session.check_tokens(content.tokens)) return damaged("it has tokens outside the vocabulary");
    return content;
  }

 private:
  Error damaged(const char* what) const {
    Error found = state_.damaged(what);
    found.message += ", or take another copy";
    return found;
  }

  /// Reads on. The tensors of a state are in the order of `describe_state`, so each byte comes once.
  Status read(void* to, int64_t bytes) {
    SALA_RETURN_IF_ERROR(state_.file.read(offset_, to, bytes));
    hash_.update({static_cast<const char*>(to), static_cast<size_t>(bytes)});
    offset_ += bytes;
    return success();
  }

  template <class T>
  Status read_vector(const char* name, std::vector<T>& values) {
    const SafetensorsTensor* tensor = state_.tensor(name);
    values.resize(static_cast<size_t>(elements_of(tensor->shape)));
    return read(values.data(), tensor->bytes);
  }

  Status read_cache(SessionCore& session, size_t index) {
    Memory& memory = session.model().engine->memory();
    for (const ByteRange& part : session.rows(index, state_.info.first, state_.info.past_length).parts()) {
      char* to = static_cast<char*>(session.caches()[index].buffer.data()) + part.offset;
      for (int64_t done = 0; done < part.bytes;) {
        const int64_t bytes = std::min(kStagingBytes, part.bytes - done);
        SALA_RETURN_IF_ERROR(read(staging_.get(), bytes));
        SALA_RETURN_IF_ERROR(memory.write(to + done, staging_.get(), bytes));
        done += bytes;
      }
    }
    return success();
  }

  const StateFile& state_;
  Sha256 hash_;
  int64_t offset_ = 0;
  std::unique_ptr<char[]> staging_ = std::make_unique_for_overwrite<char[]>(kStagingBytes);
};

/// Makes what was read the context of a session, with a checkpoint at its end.
Status take_over(SessionCore& session, const StateInfo& info, StateContent content) {
  SALA_RETURN_IF_ERROR(
      session.restore(content.tokens, info.past_length, info.prompt_length, std::move(content.logits)));
  return session.keep_checkpoint(true);
}

/// A part begins where those in front of it end, at `first`, and does not go beyond `most`.
Status check_place(const StateFile& part, int64_t first, int64_t most) {
  if (part.info.first == first && part.info.past_length <= most) return success();
  return error(ErrorCode::kStateDamaged, part.file.path().string(), " holds what is behind ", part.info.first,
               " tokens up to ", part.info.past_length, ", expected a part from ", first, " to at most ", most,
               ": give the parts in their order, each once");
}

/// Reads a rows part into a session, behind the `tokens` of the parts before it, and adds its own to them.
Status append_rows(const std::filesystem::path& path, SessionCore& session, int64_t most,
                   std::vector<int32_t>& tokens) {
  const auto part = StateFile::open(path, StateKind::kRows, session.model());
  if (!part) return part.error();
  SALA_RETURN_IF_ERROR(check_place(*part, static_cast<int64_t>(tokens.size()), most));
  Reader reader(*part);
  SALA_RETURN_IF_ERROR(reader.begin());
  const auto content = reader.fill(session);
  if (!content) return content.error();
  tokens.insert(tokens.end(), content->tokens.begin(), content->tokens.end());
  return success();
}

}  // namespace

Status save_state(ReplacedFile& target, const SessionCore& session) {
  SALA_RETURN_IF_ERROR(session.usable());
  const StateInfo info{StateKind::kSession, 0, session.position(), session.past_length(), session.prompt_length()};
  SALA_RETURN_IF_ERROR(Writer(target, session, info).run());
  return success();
}

Expected<std::string> save_rows(ReplacedFile& target, const SessionCore& session, int64_t first, int64_t last) {
  return Writer(target, session, {StateKind::kRows, first, last, last, last}).run();
}

Expected<std::string> save_checkpoint(ReplacedFile& target, const SessionCore& session, int64_t first,
                                      const Checkpoint& checkpoint) {
  const int64_t position = checkpoint.past_length;
  const StateInfo info{StateKind::kCheckpoint, first, position, position, checkpoint.prompt_length};
  return Writer(target, session, info, &checkpoint).run();
}

Expected<int64_t> state_bytes(const ModelData& model, int64_t tokens) {
  const int64_t most = model.engine->limits().max_context;
  if (tokens < 0 || tokens > most) {
    return error(ErrorCode::kInvalidArgument, "tokens is ", tokens, ", expected 0 to ", most,
                 ", which is what this engine serves");
  }
  SafetensorsHeader header = describe_state(model, {StateKind::kSession, 0, tokens, tokens, tokens});
  const int64_t bytes = state_file_bytes(header, write_safetensors_header(header).size());
  if (bytes < 0) return error(ErrorCode::kInvalidArgument, "a state of ", tokens, " tokens exceeds the address space");
  return bytes;
}

Expected<std::unique_ptr<SessionCore>> restore_state(const std::filesystem::path& path,
                                                     std::shared_ptr<const ModelData> model,
                                                     const SessionOptions& options) {
  const auto state = StateFile::open(path, StateKind::kSession, *model);
  if (!state) return state.error();
  Reader reader(*state);
  SALA_RETURN_IF_ERROR(reader.begin());
  auto session = session_for(*state, std::move(model), options);
  if (!session) return session.error();
  auto content = reader.fill(**session);
  if (!content) return content.error();
  SALA_RETURN_IF_ERROR(take_over(**session, state->info, *std::move(content)));
  return session;
}

Expected<std::unique_ptr<SessionCore>> restore_parts(std::span<const std::filesystem::path> rows,
                                                     const std::filesystem::path& checkpoint,
                                                     std::shared_ptr<const ModelData> model,
                                                     const SessionOptions& options,
                                                     const std::function<bool(size_t part)>& on_part) {
  const auto begin = [&](size_t part) -> Status {
    if (!on_part || on_part(part)) return success();
    return error(ErrorCode::kStopped, "restoring was stopped");
  };
  SALA_RETURN_IF_ERROR(begin(rows.size()));
  const auto end = StateFile::open(checkpoint, StateKind::kCheckpoint, *model);
  if (!end) return end.error();
  Reader end_reader(*end);
  SALA_RETURN_IF_ERROR(end_reader.begin());
  auto session = session_for(*end, std::move(model), options);
  if (!session) return session;
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < rows.size(); ++i) {
    SALA_RETURN_IF_ERROR(begin(i));
    SALA_RETURN_IF_ERROR(append_rows(rows[i], **session, end->info.first, tokens));
  }
  SALA_RETURN_IF_ERROR(begin(rows.size()));
  SALA_RETURN_IF_ERROR(check_place(*end, static_cast<int64_t>(tokens.size()), end->info.past_length));
  auto content = end_reader.fill(**session);
  if (!content) return content.error();
  content->tokens.insert(content->tokens.begin(), tokens.begin(), tokens.end());
  SALA_RETURN_IF_ERROR(take_over(**session, end->info, *std::move(content)));
  return session;
}

}  // namespace sala
