#include "session/state_header.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

namespace sala {

using namespace state_names;

namespace {

constexpr const char* kFirst = "first";
constexpr const char* kLast = "last";
constexpr const char* kPastLength = "past_length";
constexpr const char* kPromptLength = "prompt_length";

/// What tells files of one kind from others.
struct Format {
  const char* name;
  const char* version;
  const char* noun;
  SafetensorsUse use;
};

/// In the order of StateKind.
constexpr Format kFormats[] = {
    {"sala-state",
     "2",
     "a saved session",
     {ErrorCode::kStateForeign, "give a file that Session::save wrote", ErrorCode::kStateDamaged,
      "save the session again"}},
    {"sala-state-rows",
     "1",
     "a part with rows of a session",
     {ErrorCode::kStateForeign, "give a file that Session::save_rows wrote", ErrorCode::kStateDamaged,
      "save the part again"}},
    {"sala-state-checkpoint",
     "1",
     "a part with a checkpoint of a session",
     {ErrorCode::kStateForeign, "give a file that Session::save_checkpoint wrote", ErrorCode::kStateDamaged,
      "save the part again"}},
};

const Format& format_of(StateKind kind) { return kFormats[static_cast<size_t>(kind)]; }

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

/// Takes the lengths of a header into `info`: those of a session, in which at most one token is pending, or of a part,
/// which ends as many tokens behind its first as it has. The answer begins within the context.
Status take_lengths(StateFile& state) {
  const SafetensorsTensor* ids = state.tensor(kTokenIds);
  const int64_t tokens = ids != nullptr && ids->shape.size() == 1 ? ids->shape[0] : 0;
  Status status = success();
  const auto length = [&](const char* name, int64_t least, int64_t most) {
    const std::string text = state.value(name);
    const auto number = whole_number(text, std::min<int64_t>(most, INT32_MAX));
    if (number && *number >= least) return *number;
    if (status) status = state.damaged(name, " is '", text, "' for ", tokens, " tokens");
    return int64_t{0};
  };
  StateInfo& info = state.info;
  if (info.kind != StateKind::kSession) info.first = length(kFirst, 0, INT32_MAX - tokens);
  info.position = info.prompt_length = info.first + tokens;
  switch (info.kind) {
    case StateKind::kSession:
      info.past_length = length(kPastLength, info.position - 1, info.position);
      break;
    case StateKind::kRows:
      info.past_length = length(kLast, std::max(info.first + 1, info.position), info.position);
      break;
    case StateKind::kCheckpoint:
      info.past_length = length(kPastLength, std::max<int64_t>(1, info.position), info.position);
      break;
  }
  const bool tells_prompt = state.header.metadata.contains(kPromptLength) || info.kind == StateKind::kCheckpoint;
  if (tells_prompt && info.kind != StateKind::kRows) info.prompt_length = length(kPromptLength, 0, info.position);
  return status;
}

/// Whether a file is of its kind and of this model.
Status check_metadata(const StateFile& state, const ModelData& model) {
  const std::string path = state.file.path().string();
  const Format& format = format_of(state.info.kind);
  const std::string version = state.value("version");
  if (state.value("format") != format.name) {
    return error(ErrorCode::kStateForeign, path, " is not ", format.noun, ": ", format.use.if_foreign);
  }
  if (version == "1" && state.info.kind == StateKind::kSession) {
    return error(ErrorCode::kStateVersion, path,
                 " has state version '1', which has no hash to show damage: ", "this release reads ", format.version,
                 "; use the release that wrote it, or prefill again");
  }
  if (version != format.version) {
    return error(ErrorCode::kStateVersion, path, " has state version '", version, "', this release reads ",
                 format.version, ": use the release that wrote it, or prefill again");
  }
  if (state.value("model") != model.config.fingerprint) {
    return error(ErrorCode::kStateModel, path, " was saved from another model (fingerprint ", state.value("model"),
                 "), this one is ", model.config.source, " (", model.config.fingerprint, ")");
  }
  if (state.value("precision") != model.engine->precision()) {
    return error(ErrorCode::kStatePrecision, path, " holds caches of precision '", state.value("precision"),
                 "', runtime ", model.engine->name(), " of this bundle computes in ", model.engine->precision(),
                 ": restore it on a runtime of its precision (on a CPU, cpu_math fast has that of the bundle), or "
                 "prefill again");
  }
  return success();
}

Status check_tensors(const StateFile& state, const ModelData& model) {
  const SafetensorsHeader expected = describe_state(model, state.info);
  int64_t offset = state.header.data_start;
  for (const SafetensorsTensor& wanted : expected.tensors) {
    const SafetensorsTensor* found = state.tensor(wanted.name);
    if (found == nullptr) return state.damaged("tensor ", wanted.name, " is missing");
    if (found->dtype != wanted.dtype || found->shape != wanted.shape) {
      return state.damaged("tensor ", wanted.name, " is ", found->type, " ", to_string(found->shape), ", expected ",
                           name_of(*wanted.dtype), " ", to_string(wanted.shape));
    }
    if (found->offset != offset) return state.damaged("tensor ", wanted.name, " is not where a state has it");
    offset += wanted.bytes;
  }
  if (state.header.tensors.size() != expected.tensors.size()) {
    return state.damaged("it has ", state.header.tensors.size(), " tensors, expected ", expected.tensors.size());
  }
  return success();
}

}  // namespace

const SafetensorsUse& use_of(StateKind kind) { return format_of(kind).use; }

Expected<StateFile> StateFile::open(const std::filesystem::path& path, StateKind kind, const ModelData& model) {
  auto opened = File::open(path, ErrorCode::kStateUnreadable);
  if (!opened) return opened.error();
  auto read = read_safetensors_header(*opened, use_of(kind));
  if (!read) return read.error();
  StateFile state{*std::move(opened), *std::move(read), {kind}};
  SALA_RETURN_IF_ERROR(check_metadata(state, model));
  SALA_RETURN_IF_ERROR(take_lengths(state));
  SALA_RETURN_IF_ERROR(check_tensors(state, model));
  return state;
}

std::string StateFile::value(const char* key) const {
  const auto found = header.metadata.find(key);
  return found == header.metadata.end() ? std::string() : found->second;
}

const SafetensorsTensor* StateFile::tensor(std::string_view name) const {
  const auto found = std::find_if(header.tensors.begin(), header.tensors.end(),
                                  [&](const SafetensorsTensor& each) { return each.name == name; });
  return found == header.tensors.end() ? nullptr : &*found;
}

SafetensorsHeader describe_state(const ModelData& model, const StateInfo& info) {
  SafetensorsHeader header;
  header.metadata = {{"format", format_of(info.kind).name},
                     {"version", format_of(info.kind).version},
                     {"model", model.config.fingerprint},
                     {"precision", std::string(model.engine->precision())},
                     {kSha256, no_hash()},
                     {info.kind == StateKind::kRows ? kLast : kPastLength, std::to_string(info.past_length)}};
  if (info.kind != StateKind::kSession) header.metadata[kFirst] = std::to_string(info.first);
  if (info.kind != StateKind::kRows) header.metadata[kPromptLength] = ten_digits(info.prompt_length);
  const auto add = [&](std::string name, DType dtype, Shape shape) {
    const int64_t bytes = bytes_of(dtype, elements_of(shape));
    header.tensors.push_back({std::move(name), dtype, {}, std::move(shape), 0, bytes});
  };
  add(kTokenIds, DType::kInt32, {info.position - info.first});
  if (info.has_logits()) add(kLogits, DType::kFloat32, {model.config.vocab_size});
  for (const CacheSpec& spec : model.step.caches) {
    if (!info.has_cache(spec)) continue;
    Shape shape = spec.past.bound(cache_sizes(model.config, std::max<int64_t>(1, info.past_length)));
    if (spec.rows != CacheRows::kAll) {
      shape[spec.row_axis] =
          spec.valid_rows(model.config, info.past_length) - spec.valid_rows(model.config, info.first);
    }
    add(spec.past.name, spec.past.dtype, std::move(shape));
  }
  return header;
}

int64_t state_file_bytes(const SafetensorsHeader& header, size_t header_bytes) {
  int64_t total = static_cast<int64_t>(header_bytes);
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (tensor.bytes < 0 || __builtin_add_overflow(total, tensor.bytes, &total)) return -1;
  }
  return total;
}

size_t place_of_hash(std::string_view header_text, std::string_view digits) {
  // No other value can hold this text: its quotes would be escaped.
  const std::string before = std::string("\"") + kSha256 + "\":\"";
  const size_t found = header_text.find(before + std::string(digits) + '"');
  return found == std::string_view::npos ? found : found + before.size();
}

std::string no_hash() { return std::string(64, '0'); }

}  // namespace sala
