#include "session/state_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>

#include "base/file.h"
#include "base/safetensors.h"

namespace sala {

namespace {

constexpr const char* kFormat = "sala-state";
constexpr const char* kVersion = "1";
constexpr const char* kTokenIds = "token_ids";
constexpr const char* kLogits = "logits";
constexpr int64_t kStagingBytes = int64_t{4} << 20;
constexpr SafetensorsUse kState{ErrorCode::kStateForeign, "give a file that Session::save wrote",
                                ErrorCode::kStateDamaged, "save the session again"};

/// The rows of a cache that a state holds, as equal pieces of consecutive bytes.
struct ValidRows {
  Shape shape;
  int64_t pieces = 1;
  int64_t piece_bytes = 0;
  int64_t stride_bytes = 0;  // between the starts of pieces
};

ValidRows valid_rows(const ModelConfig& config, const CacheSpec& spec, Shape cache_shape, int64_t tokens) {
  ValidRows valid;
  valid.shape = std::move(cache_shape);
  if (spec.rows == CacheRows::kAll) {
    valid.piece_bytes = valid.stride_bytes = bytes_of(spec.past.dtype, elements_of(valid.shape));
    return valid;
  }
  int64_t row_bytes = bytes_of(spec.past.dtype, 1);
  for (size_t axis = 0; axis < valid.shape.size(); ++axis) {
    if (axis < spec.row_axis) valid.pieces *= valid.shape[axis];
    if (axis > spec.row_axis) row_bytes *= valid.shape[axis];
  }
  int64_t& rows = valid.shape[spec.row_axis];
  valid.stride_bytes = rows * row_bytes;
  rows = spec.valid_rows(config, tokens);
  valid.piece_bytes = rows * row_bytes;
  return valid;
}

/// The tensors of a state, in file order.
SafetensorsHeader describe(const ModelData& model, int64_t position, int64_t past_length) {
  SafetensorsHeader header;
  header.metadata = {{"format", kFormat},
                     {"version", kVersion},
                     {"model", model.config.fingerprint},
                     {"precision", std::string(model.engine->precision())},
                     {"past_length", std::to_string(past_length)}};
  const auto add = [&](std::string name, DType dtype, Shape shape) {
    const int64_t bytes = bytes_of(dtype, elements_of(shape));
    header.tensors.push_back({std::move(name), dtype, {}, std::move(shape), 0, bytes});
  };
  add(kTokenIds, DType::kInt32, {position});
  if (past_length == position && position > 0) add(kLogits, DType::kFloat32, {model.config.vocab_size});
  for (const CacheSpec& spec : model.step.caches) {
    const Shape shape = spec.past.bound(cache_sizes(model.config, std::max<int64_t>(1, past_length)));
    add(spec.past.name, spec.past.dtype, valid_rows(model.config, spec, shape, past_length).shape);
  }
  return header;
}

Status write_cache(const SessionCore& session, size_t index, File& file, std::vector<char>& staging) {
  const auto& cache = session.caches()[index];
  const ValidRows valid =
      valid_rows(session.model().config, session.model().step.caches[index], cache.shape, session.past_length());
  for (int64_t piece = 0; piece < valid.pieces; ++piece) {
    const char* from = static_cast<const char*>(cache.buffer.data()) + piece * valid.stride_bytes;
    for (int64_t done = 0; done < valid.piece_bytes;) {
      const int64_t bytes = std::min(kStagingBytes, valid.piece_bytes - done);
      SALA_RETURN_IF_ERROR(session.model().engine->memory().read(staging.data(), from + done, bytes));
      SALA_RETURN_IF_ERROR(file.write(staging.data(), bytes));
      done += bytes;
    }
  }
  return success();
}

Status write_all(const SessionCore& session, File& file) {
  SafetensorsHeader header = describe(session.model(), session.position(), session.past_length());
  const std::string text = write_safetensors_header(header);
  SALA_RETURN_IF_ERROR(file.write(text.data(), static_cast<int64_t>(text.size())));
  SALA_RETURN_IF_ERROR(file.write(session.tokens().data(), bytes_of(DType::kInt32, session.position())));
  const auto logits = session.logits();
  SALA_RETURN_IF_ERROR(file.write(logits.data(), static_cast<int64_t>(logits.size_bytes())));
  std::vector<char> staging(static_cast<size_t>(kStagingBytes));
  for (size_t i = 0; i < session.caches().size(); ++i) SALA_RETURN_IF_ERROR(write_cache(session, i, file, staging));
  return file.flush();
}

/// A file name that is removed at the end, unless it was given its final name.
class TemporaryFile {
 public:
  explicit TemporaryFile(std::filesystem::path path) : path_(std::move(path)) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    std::error_code ignored;  // there is nobody to tell, and the failure that led here is told
    if (!path_.empty()) std::filesystem::remove(path_, ignored);
  }

  Status rename_to(const std::filesystem::path& target) {
    std::error_code failure;
    std::filesystem::rename(path_, target, failure);
    if (failure) {
      return error(ErrorCode::kStateUnwritable, target.string(), " cannot be replaced: ", failure.message());
    }
    path_.clear();
    return success();
  }

 private:
  std::filesystem::path path_;
};

/// What a valid header says beyond its tensors.
struct StateInfo {
  int64_t past_length = 0;
  int64_t position = 0;
};

Expected<StateInfo> check_metadata(const SafetensorsHeader& header, const File& file, const ModelData& model) {
  const std::string path = file.path().string();
  const auto value = [&](const char* key) {
    const auto found = header.metadata.find(key);
    return found == header.metadata.end() ? std::string() : found->second;
  };
  if (value("format") != kFormat) {
    return error(ErrorCode::kStateForeign, path, " is not a saved session: give a file that Session::save wrote");
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
  StateInfo info;
  const std::string text = value("past_length");
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), info.past_length);
  const bool numeric = parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
  const auto ids = std::find_if(header.tensors.begin(), header.tensors.end(),
                                [](const SafetensorsTensor& tensor) { return tensor.name == kTokenIds; });
  if (ids != header.tensors.end() && ids->shape.size() == 1) info.position = ids->shape[0];
  const int64_t pending = info.position - info.past_length;
  if (!numeric || info.past_length < 0 || info.past_length > INT32_MAX || pending < 0 || pending > 1) {
    return error(ErrorCode::kStateDamaged, path, " is damaged: past_length is '", text, "' for ", info.position,
                 " tokens; save the session again");
  }
  return info;
}

Status check_tensors(const SafetensorsHeader& header, const File& file, const ModelData& model, const StateInfo& info) {
  const SafetensorsHeader expected = describe(model, info.position, info.past_length);
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
  }
  if (header.tensors.size() != expected.tensors.size()) {
    return damaged("it has ", header.tensors.size(), " tensors, expected ", expected.tensors.size());
  }
  return success();
}

const SafetensorsTensor& stored(const SafetensorsHeader& header, const std::string& name) {
  return *std::find_if(header.tensors.begin(), header.tensors.end(),
                       [&](const SafetensorsTensor& tensor) { return tensor.name == name; });
}

Status read_cache(const SessionCore& session, size_t index, int64_t tokens, const SafetensorsHeader& header,
                  const File& file, std::vector<char>& staging) {
  const CacheSpec& spec = session.model().step.caches[index];
  const auto& cache = session.caches()[index];
  const ValidRows valid = valid_rows(session.model().config, spec, cache.shape, tokens);
  int64_t offset = stored(header, spec.past.name).offset;
  for (int64_t piece = 0; piece < valid.pieces; ++piece) {
    char* to = static_cast<char*>(cache.buffer.data()) + piece * valid.stride_bytes;
    for (int64_t done = 0; done < valid.piece_bytes;) {
      const int64_t bytes = std::min(kStagingBytes, valid.piece_bytes - done);
      SALA_RETURN_IF_ERROR(file.read(offset, staging.data(), bytes));
      SALA_RETURN_IF_ERROR(session.model().engine->memory().write(to + done, staging.data(), bytes));
      offset += bytes;
      done += bytes;
    }
  }
  return success();
}

template <class T>
Expected<std::vector<T>> read_vector(const SafetensorsHeader& header, const char* name, const File& file) {
  const SafetensorsTensor& tensor = stored(header, name);
  std::vector<T> values(static_cast<size_t>(elements_of(tensor.shape)));
  SALA_RETURN_IF_ERROR(file.read(tensor.offset, values.data(), tensor.bytes));
  return values;
}

/// Reads a checked file into a new session.
Status fill(SessionCore& session, const SafetensorsHeader& header, const File& file, const StateInfo& info) {
  auto tokens = read_vector<int32_t>(header, kTokenIds, file);
  if (!tokens) return tokens.error();
  if (!session.check_tokens(*tokens)) {
    return error(ErrorCode::kStateDamaged, file.path().string(),
                 " is damaged: it has tokens outside the vocabulary; save the session again");
  }
  std::vector<float> logits;
  if (info.past_length == info.position && info.position > 0) {
    auto read = read_vector<float>(header, kLogits, file);
    if (!read) return read.error();
    logits = *std::move(read);
  }
  std::vector<char> staging(static_cast<size_t>(kStagingBytes));
  for (size_t i = 0; i < session.caches().size(); ++i) {
    SALA_RETURN_IF_ERROR(read_cache(session, i, info.past_length, header, file, staging));
  }
  session.restore(*std::move(tokens), info.past_length, std::move(logits));
  return success();
}

}  // namespace

Status save_state(const std::filesystem::path& path, const SessionCore& session) {
  SALA_RETURN_IF_ERROR(session.usable());
  static std::atomic<uint64_t> counter = 0;
  std::filesystem::path partial = path;
  partial += ".partial-" + std::to_string(getpid()) + "-" + std::to_string(counter++);
  auto file = File::create(partial, ErrorCode::kStateUnwritable);
  if (!file) return file.error();
  TemporaryFile temporary(partial);
  SALA_RETURN_IF_ERROR(write_all(session, *file));
  return temporary.rename_to(path);
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
  auto session = SessionCore::create(std::move(model), chosen);
  if (!session) return session.error();
  SALA_RETURN_IF_ERROR(fill(**session, *header, *file, *info));
  return session;
}

}  // namespace sala
