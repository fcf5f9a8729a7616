#include "session/state_file.h"

#include <algorithm>
#include <charconv>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "base/file.h"
#include "base/safetensors.h"
#include "base/sha256.h"

namespace sala {

namespace {

constexpr const char* kFormat = "sala-state";
constexpr const char* kVersion = "2";
constexpr const char* kSha256 = "sha256";
const std::string kNoHash(64, '0');
constexpr const char* kTokenIds = "token_ids";
constexpr const char* kPastLength = "past_length";
constexpr const char* kPromptLength = "prompt_length";
constexpr const char* kLogits = "logits";
constexpr int64_t kStagingBytes = int64_t{4} << 20;
constexpr SafetensorsUse kState{ErrorCode::kStateForeign, "give a file that Session::save wrote",
                                ErrorCode::kStateDamaged, "save the session again"};

/// The lengths that a state tells.
struct StateInfo {
  int64_t position = 0;
  int64_t past_length = 0;
  int64_t prompt_length = 0;
};

/// A number with zeros in front: the size of a file does not depend on it.
std::string ten_digits(int64_t number) {
  const std::string digits = std::to_string(number);
  return std::string(digits.size() < 10 ? 10 - digits.size() : 0, '0') + digits;
}

/// The number of a text that is nothing else; nothing for one outside 0 to `most`.
std::optional<int64_t> whole_number(const std::string& text, int64_t most) {
  int64_t number = -1;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool is_number = parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
  return is_number && number >= 0 && number <= most ? std::optional(number) : std::nullopt;
}

/// The tensors of a state, in file order.
SafetensorsHeader describe(const ModelData& model, const StateInfo& info) {
  const auto& [position, past_length, prompt_length] = info;
  SafetensorsHeader header;
  header.metadata = {{"format", kFormat},
                     {"version", kVersion},
                     {"model", model.config.fingerprint},
                     {"precision", std::string(model.engine->precision())},
                     {kPastLength, std::to_string(past_length)},
                     {kPromptLength, ten_digits(prompt_length)}};
  const auto add = [&](std::string name, DType dtype, Shape shape) {
    const int64_t bytes = bytes_of(dtype, elements_of(shape));
    header.tensors.push_back({std::move(name), dtype, {}, std::move(shape), 0, bytes});
  };
  add(kTokenIds, DType::kInt32, {position});
  if (past_length == position && position > 0) add(kLogits, DType::kFloat32, {model.config.vocab_size});
  for (const CacheSpec& spec : model.step.caches) {
    Shape shape = spec.past.bound(cache_sizes(model.config, std::max<int64_t>(1, past_length)));
    if (spec.rows != CacheRows::kAll) shape[spec.row_axis] = spec.valid_rows(model.config, past_length);
    add(spec.past.name, spec.past.dtype, std::move(shape));
  }
  return header;
}

/// Bytes of a file with this header, whose text has `header_bytes`; -1 if they exceed the address space.
int64_t file_bytes(const SafetensorsHeader& header, size_t header_bytes) {
  int64_t total = static_cast<int64_t>(header_bytes);
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (tensor.bytes < 0 || __builtin_add_overflow(total, tensor.bytes, &total)) return -1;
  }
  return total;
}

/// Where the digits of the hash are in the text of a header; npos if they are not. No other value can hold this text:
/// its quotes would be escaped.
size_t place_of_hash(std::string_view header_text, std::string_view digits) {
  const std::string before = std::string("\"") + kSha256 + "\":\"";
  const size_t found = header_text.find(before + std::string(digits) + '"');
  return found == std::string_view::npos ? found : found + before.size();
}

/// Writes a state, and hashes what it writes.
class Writer {
 public:
  Writer(ReplacedFile& file, const SessionCore& session) : file_(file), session_(session) {}

  Status run() {
    SafetensorsHeader header =
        describe(session_.model(), {session_.position(), session_.past_length(), session_.prompt_length()});
    header.metadata[kSha256] = kNoHash;
    const std::string text = write_safetensors_header(header);
    SALA_RETURN_IF_ERROR(file_.require_allowed(file_bytes(header, text.size())));
    SALA_RETURN_IF_ERROR(file_.begin());
    SALA_RETURN_IF_ERROR(write(text.data(), text.size()));
    SALA_RETURN_IF_ERROR(write(session_.tokens().data(), session_.tokens().size() * sizeof(int32_t)));
    SALA_RETURN_IF_ERROR(write(session_.logits().data(), session_.logits().size_bytes()));
    for (size_t i = 0; i < session_.caches().size(); ++i) SALA_RETURN_IF_ERROR(write_cache(i));
    const std::string digits = hash_.finish();
    const auto place = static_cast<int64_t>(place_of_hash(text, kNoHash));
    SALA_RETURN_IF_ERROR(file_.write_at(place, digits.data(), static_cast<int64_t>(digits.size())));
    return file_.commit();
  }

 private:
  Status write(const void* from, size_t bytes) {
    hash_.update({static_cast<const char*>(from), bytes});
    return file_.write(from, static_cast<int64_t>(bytes));
  }

  Status write_cache(size_t index) {
    Memory& memory = session_.model().engine->memory();
    for (const ByteRange& part : session_.rows(index, 0, session_.past_length()).parts()) {
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
  Sha256 hash_;
  std::unique_ptr<char[]> staging_ = std::make_unique_for_overwrite<char[]>(kStagingBytes);
};

/// The lengths of a header: at most one token is pending, and the answer begins within the context.
Expected<StateInfo> check_lengths(const SafetensorsHeader& header, const std::string& path) {
  StateInfo info;
  const auto ids = std::find_if(header.tensors.begin(), header.tensors.end(),
                                [](const SafetensorsTensor& tensor) { return tensor.name == kTokenIds; });
  if (ids != header.tensors.end() && ids->shape.size() == 1) info.position = ids->shape[0];
  const auto damaged = [&](const char* name, const std::string& text) {
    return error(ErrorCode::kStateDamaged, path, " is damaged: ", name, " is '", text, "' for ", info.position,
                 " tokens; save the session again");
  };
  const auto past = header.metadata.find(kPastLength);
  if (past == header.metadata.end()) return damaged(kPastLength, "");
  const auto past_length = whole_number(past->second, INT32_MAX);
  if (!past_length || info.position < *past_length || info.position > *past_length + 1) {
    return damaged(kPastLength, past->second);
  }
  info.past_length = *past_length;
  info.prompt_length = info.position;
  const auto prompt = header.metadata.find(kPromptLength);
  if (prompt == header.metadata.end()) return info;
  const auto prompt_length = whole_number(prompt->second, info.position);
  if (!prompt_length) return damaged(kPromptLength, prompt->second);
  info.prompt_length = *prompt_length;
  return info;
}

/// The lengths of a header that is of this format and model.
Expected<StateInfo> check_metadata(const SafetensorsHeader& header, const File& file, const ModelData& model) {
  const std::string path = file.path().string();
  const auto value = [&](const char* key) {
    const auto found = header.metadata.find(key);
    return found == header.metadata.end() ? std::string() : found->second;
  };
  if (value("format") != kFormat) {
    return error(ErrorCode::kStateForeign, path, " is not a saved session: give a file that Session::save wrote");
  }
  if (value("version") == "1") {
    return error(ErrorCode::kStateVersion, path,
                 " has state version '1', which has no hash to show damage: ", "this release reads ", kVersion,
                 "; use the release that wrote it, or prefill again");
  }
  if (value("version") != kVersion) {
    return error(ErrorCode::kStateVersion, path, " has state version '", value("version"), "', this release reads ",
                 kVersion, ": use the release that wrote it, or prefill again");
  }
  if (value("model") != model.config.fingerprint) {
    return error(ErrorCode::kStateModel, path, " was saved from another model (fingerprint ", value("model"),
                 "), this one is ", model.config.source, " (", model.config.fingerprint, ")");
  }
  if (value("precision") != model.engine->precision()) {
    return error(ErrorCode::kStatePrecision, path, " holds caches of precision '", value("precision"), "', runtime ",
                 model.engine->name(), " of this bundle computes in ", model.engine->precision(),
                 ": restore it on a runtime of its precision, or prefill again");
  }
  return check_lengths(header, path);
}

Status check_tensors(const SafetensorsHeader& header, const File& file, const ModelData& model, const StateInfo& info) {
  const SafetensorsHeader expected = describe(model, info);
  int64_t offset = header.data_start;
  const auto damaged = [&](const auto&... parts) {
    return error(ErrorCode::kStateDamaged, file.path().string(), " is damaged: ", parts..., "; save the session again");
  };
  for (const SafetensorsTensor& wanted : expected.tensors) {
    const auto found = std::find_if(header.tensors.begin(), header.tensors.end(),
                                    [&](const SafetensorsTensor& tensor) { return tensor.name == wanted.name; });
    if (found == header.tensors.end()) return damaged("tensor ", wanted.name, " is missing");
    if (found->dtype != wanted.dtype || found->shape != wanted.shape) {
      return damaged("tensor ", wanted.name, " is ", found->type, " ", to_string(found->shape), ", expected ",
                     name_of(*wanted.dtype), " ", to_string(wanted.shape));
    }
    if (found->offset != offset) return damaged("tensor ", wanted.name, " is not where a state has it");
    offset += wanted.bytes;
  }
  if (header.tensors.size() != expected.tensors.size()) {
    return damaged("it has ", header.tensors.size(), " tensors, expected ", expected.tensors.size());
  }
  return success();
}

/// Reads a checked file into a new session, from its first byte to its last, and compares their hash.
class Reader {
 public:
  Reader(const File& file, const SafetensorsHeader& header, const StateInfo& info)
      : file_(file), header_(header), info_(info) {}

  /// Hashes the header, with zeros for the digits of the hash.
  Status begin() {
    std::string text(static_cast<size_t>(header_.data_start), '\0');
    SALA_RETURN_IF_ERROR(file_.read(0, text.data(), header_.data_start));
    const auto digits = header_.metadata.find(kSha256);
    const size_t place = digits == header_.metadata.end() || digits->second.size() != kNoHash.size()
                             ? std::string::npos
                             : place_of_hash(text, digits->second);
    if (place == std::string::npos) return damaged("its header has no SHA-256");
    hash_.update(text.replace(place, kNoHash.size(), kNoHash));
    offset_ = header_.data_start;
    return success();
  }

  Status fill(SessionCore& session) {
    auto tokens = read_vector<int32_t>(kTokenIds);
    if (!tokens) return tokens.error();
    SALA_RETURN_IF_ERROR(session.claim(0, info_.past_length));
    std::vector<float> logits;
    if (info_.past_length == info_.position && info_.position > 0) {
      auto read = read_vector<float>(kLogits);
      if (!read) return read.error();
      logits = *std::move(read);
    }
    for (size_t i = 0; i < session.caches().size(); ++i) SALA_RETURN_IF_ERROR(read_cache(session, i));
    if (hash_.finish() != header_.metadata.at(kSha256)) {
      return damaged("a bit or more of it has changed, its SHA-256 is another");
    }
    if (!session.check_tokens(*tokens)) return damaged("it has tokens outside the vocabulary");
    SALA_RETURN_IF_ERROR(session.restore(*tokens, info_.past_length, info_.prompt_length, std::move(logits)));
    return session.keep_checkpoint(true);
  }

 private:
  Error damaged(const std::string& what) const {
    return error(ErrorCode::kStateDamaged, file_.path().string(), " is damaged: ", what,
                 "; save the session again, or take another copy");
  }

  /// Reads on. The tensors of a state are in the order of `describe`, so each byte comes once.
  Status read(void* to, int64_t bytes) {
    SALA_RETURN_IF_ERROR(file_.read(offset_, to, bytes));
    hash_.update({static_cast<const char*>(to), static_cast<size_t>(bytes)});
    offset_ += bytes;
    return success();
  }

  template <class T>
  Expected<std::vector<T>> read_vector(const char* name) {
    const auto tensor = std::find_if(header_.tensors.begin(), header_.tensors.end(),
                                     [&](const SafetensorsTensor& each) { return each.name == name; });
    std::vector<T> values(static_cast<size_t>(elements_of(tensor->shape)));
    SALA_RETURN_IF_ERROR(read(values.data(), tensor->bytes));
    return values;
  }

  Status read_cache(SessionCore& session, size_t index) {
    Memory& memory = session.model().engine->memory();
    for (const ByteRange& part : session.rows(index, 0, info_.past_length).parts()) {
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

  const File& file_;
  const SafetensorsHeader& header_;
  const StateInfo& info_;
  Sha256 hash_;
  int64_t offset_ = 0;
  std::unique_ptr<char[]> staging_ = std::make_unique_for_overwrite<char[]>(kStagingBytes);
};

}  // namespace

Status save_state(ReplacedFile& target, const SessionCore& session) {
  SALA_RETURN_IF_ERROR(session.usable());
  const Status saved = Writer(target, session).run();
  if (!saved) target.abandon();
  return saved;
}

Expected<int64_t> state_bytes(const ModelData& model, int64_t tokens) {
  const int64_t most = model.engine->limits().max_context;
  if (tokens < 0 || tokens > most) {
    return error(ErrorCode::kInvalidArgument, "tokens is ", tokens, ", expected 0 to ", most,
                 ", which is what this engine serves");
  }
  SafetensorsHeader header = describe(model, {tokens, tokens, tokens});
  header.metadata[kSha256] = kNoHash;
  const int64_t bytes = file_bytes(header, write_safetensors_header(header).size());
  if (bytes < 0) return error(ErrorCode::kInvalidArgument, "a state of ", tokens, " tokens exceeds the address space");
  return bytes;
}

Expected<std::unique_ptr<SessionCore>> restore_state(const std::filesystem::path& path,
                                                     std::shared_ptr<const ModelData> model,
                                                     const SessionOptions& options) {
  const auto file = File::open(path, ErrorCode::kStateUnreadable);
  if (!file) return file.error();
  const auto header = read_safetensors_header(*file, kState);
  if (!header) return header.error();
  const auto info = check_metadata(*header, *file, *model);
  if (!info) return info.error();
  SALA_RETURN_IF_ERROR(check_tensors(*header, *file, *model, *info));
  SessionOptions chosen = options;
  if (!chosen.max_context) {
    const int64_t usual = std::min(model->config.max_position_embeddings, model->engine->limits().max_context);
    chosen.max_context = std::max(usual, info->position);
  }
  if (*chosen.max_context < info->position) {
    return error(ErrorCode::kContextExceeded, path.string(), " holds ", info->position, " tokens, max_context is ",
                 *chosen.max_context, ": choose at least as many");
  }
  Reader reader(*file, *header, *info);
  SALA_RETURN_IF_ERROR(reader.begin());
  auto session = SessionCore::create(std::move(model), chosen);
  if (!session) return session.error();
  SALA_RETURN_IF_ERROR(reader.fill(**session));
  return session;
}

}  // namespace sala
