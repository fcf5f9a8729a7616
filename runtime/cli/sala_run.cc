// sala-run: token ids in, generated token ids out.

#include <sys/stat.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "arguments.h"
#include "sala/model.h"
#include "sala/state_target.h"
#include "signals.h"
#include "standard_streams.h"
#include "token_ids.h"

namespace sala::cli {

namespace {

constexpr int kJsonSchemaVersion = 1;  // as in sala_export/cli/output.py
constexpr const char* kNoMemory = "there is not enough memory: end other programs, or choose a smaller model";

/// Prints a line, in which names of files may be anything.
void tell(const std::string& line) { write_message("sala-run: " + printable(line) + "\n"); }

/// `5,331` for 5331.
std::string grouped(int64_t number) {
  std::string text = std::to_string(number);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) text.insert(static_cast<size_t>(at), ",");
  return text;
}

/// Runs a body that returns a Status; an exception that ends it becomes one.
template <class Body>
Status guarded(Body&& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return error(ErrorCode::kOutOfMemory, kNoMemory);
  } catch (const std::exception& thrown) {
    return error(ErrorCode::kEngineFailed, "the run was ended by an exception: ", thrown.what());
  }
}

/// Shows how far the weights are, every second, and lets a signal stop them.
std::function<bool(int64_t, int64_t)> load_progress() {
  using Clock = std::chrono::steady_clock;
  return [shown = Clock::now()](int64_t done, int64_t total) mutable {
    if (Clock::now() - shown > std::chrono::seconds(1)) {
      shown = Clock::now();
      write_message("weights " + std::to_string(done >> 20) + "/" + std::to_string(total >> 20) + " MiB\n");
    }
    return received_signal == 0;
  };
}

/// The file of token ids, or standard input. It closes what it opened.
class TokenFile {
 public:
  static Expected<TokenFile> open(const std::string& path) {
    TokenFile file(path, path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    struct stat status = {};
    if (file.descriptor_ < 0 || fstat(file.descriptor_, &status) != 0) {
      return error(ErrorCode::kInvalidArgument, "--tokens ", path, " cannot be opened: ", std::strerror(errno));
    }
    if (S_ISDIR(status.st_mode)) return error(ErrorCode::kInvalidArgument, "--tokens ", path, " is a directory");
    return file;
  }

  TokenFile(TokenFile&& other) noexcept
      : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, STDIN_FILENO)) {}
  TokenFile& operator=(TokenFile&&) = delete;
  ~TokenFile() {
    if (descriptor_ > STDIN_FILENO) close(descriptor_);
  }

  /// All ids. kContextExceeded as soon as there are more than `most`: a stream may never end.
  Expected<std::vector<int32_t>> read(int64_t most) {
    TokenIdStream stream(path_);
    std::vector<int32_t> tokens;
    char block[65536];
    for (;;) {
      const auto count = read_block(block, sizeof block);
      if (!count) return count.error();
      const auto more = *count > 0 ? stream.push({block, *count}) : stream.finish();
      if (!more) return more.error();
      tokens.insert(tokens.end(), more->begin(), more->end());
      if (static_cast<int64_t>(tokens.size()) > most) {
        return error(ErrorCode::kContextExceeded, "--tokens ", path_, " has more than ", most,
                     " token ids, for which the context has room: choose a larger --max-context");
      }
      if (*count == 0) return tokens;
    }
  }

 private:
  TokenFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

  /// 0 bytes at the end.
  Expected<size_t> read_block(char* block, size_t size) {
    while (received_signal == 0 && wait_ready(descriptor_, POLLIN)) {
      const ssize_t count = ::read(descriptor_, block, size);
      if (count >= 0) return static_cast<size_t>(count);
      if (errno != EINTR && errno != EAGAIN) {
        return error(ErrorCode::kInvalidArgument, "--tokens ", path_, " cannot be read: ", std::strerror(errno));
      }
    }
    return error(ErrorCode::kStopped, "interrupted");
  }

  std::string path_;
  int descriptor_;
};

/// What a run works with, taken one after the other before the first step.
struct Run {
  const Arguments& arguments;
  Output& output;
  std::optional<TokenFile> file{};
  std::optional<StateTarget> target{};
  std::optional<Model> model{};
  std::optional<Session> session{};
  std::vector<int32_t> prompt{};
  int64_t tokens_before = 0;  // of the session that was loaded
};

/// Refuses what cannot be a state before the bundle is loaded.
Status check_state_file(const std::string& path) {
  struct stat status = {};
  if (stat(path.c_str(), &status) != 0 || access(path.c_str(), R_OK) != 0) {
    return error(ErrorCode::kStateUnreadable, path, " cannot be opened: ", std::strerror(errno));
  }
  return S_ISREG(status.st_mode) ? success() : Status(error(ErrorCode::kStateUnreadable, path, " is not a file"));
}

Status open_files(Run& run) {
  const Arguments& arguments = run.arguments;
  if (arguments.load_state) SALA_RETURN_IF_ERROR(check_state_file(*arguments.load_state));
  if (arguments.tokens) {
    auto file = TokenFile::open(*arguments.tokens);
    if (!file) return file.error();
    run.file.emplace(*std::move(file));
  }
  keep_signals();
  if (!arguments.save_state) return success();
  auto target = StateTarget::open(*arguments.save_state);
  if (!target) return target.error();
  run.target.emplace(*std::move(target));
  return success();
}

/// Refuses a state that would not fit on its disk. `tokens` is as many as are known to come.
Status require_room(const Run& run, int64_t tokens) {
  if (!run.target) return success();
  const int64_t left = run.session->max_context() - run.session->position();
  const auto bytes = run.model->state_bytes(run.session->position() + std::min(tokens, left));
  return bytes ? run.target->require_room(*bytes) : Status(bytes.error());
}

Status load(Run& run) {
  const Arguments& arguments = run.arguments;
  LoadOptions options = arguments.load;
  options.on_progress = load_progress();
  auto model = Model::load(arguments.bundle, options);
  if (!model) return model.error();
  run.model.emplace(*std::move(model));
  if (const std::string& reason = run.model->runtime_reason(); !reason.empty()) {
    tell("runs on onnxruntime on the CPU, not on tensorrt: " + reason);
  }
  SALA_RETURN_IF_ERROR(run.model->check(arguments.generate));
  auto session = arguments.load_state ? run.model->restore(*arguments.load_state, arguments.session)
                                      : run.model->create_session(arguments.session);
  if (!session) return session.error();
  run.session.emplace(*std::move(session));
  run.tokens_before = run.session->position();
  return require_room(run, 0);
}

Status read_prompt(Run& run) {
  if (!run.file) return success();
  auto tokens = run.file->read(run.session->max_context() - run.session->position());
  if (!tokens) return tokens.error();
  run.prompt = *std::move(tokens);
  const int64_t prompt_tokens = static_cast<int64_t>(run.prompt.size());
  const int64_t new_tokens = std::min(run.arguments.generate.max_new_tokens, run.session->max_context());
  return require_room(run, prompt_tokens + new_tokens);
}

Status prefill(Run& run) {
  if (!run.file) return success();
  PrefillOptions options;
  options.on_progress = [](const PrefillProgress& progress) {
    char line[96];
    std::snprintf(line, sizeof line, "prefill %lld/%lld tokens  %.1f tok/s\n",
                  static_cast<long long>(progress.tokens_done),
                  static_cast<long long>(progress.tokens_total.value_or(0)),
                  static_cast<double>(progress.tokens_done) / progress.seconds);
    write_message(line);
    return received_signal == 0;
  };
  const auto logits = run.session->prefill(run.prompt, options);
  return logits ? success() : Status(logits.error());
}

Status generate(Run& run) {
  auto generation = run.session->generate(run.arguments.generate);
  if (!generation) return generation.error();
  const auto prompt_tokens = run.session->position();
  const bool json = run.arguments.json;
  std::vector<int32_t> tokens;
  while (received_signal == 0 && run.output.error() == 0) {
    const auto token = generation->next();
    if (!token) return token.error();
    if (!*token) break;
    tokens.push_back(**token);
    if (!json) run.output.write((tokens.size() > 1 ? " " : "") + std::to_string(**token));
  }
  if (!json) {
    run.output.write("\n");
    return success();
  }
  const nlohmann::json result = {{"schema_version", kJsonSchemaVersion},
                                 {"prompt_tokens", prompt_tokens},
                                 {"tokens", tokens},
                                 {"finish_reason", name_of(generation->finish_reason())}};
  run.output.write(result.dump() + "\n");
  return success();
}

/// Says where the state stands after the work ended early.
void tell_saved(const Run& run, const Status& saved) {
  const std::string& path = *run.arguments.save_state;
  if (!saved) return tell("what had run could not be saved to " + path + ": " + saved.error().message);
  tell("saved the " + grouped(run.session->position()) + " tokens that had run to " + path +
       ": continue with --load-state " + path);
}

Status run(const Arguments& arguments, Output& output) {
  Run run{.arguments = arguments, .output = output};
  const Status outcome = guarded([&]() -> Status {
    for (const auto step : {open_files, load, read_prompt, prefill, generate}) SALA_RETURN_IF_ERROR(step(run));
    return success();
  });
  if (!run.target) return outcome;
  const auto is_early = [&] { return !outcome || received_signal != 0 || output.error() != 0; };
  if (is_early() && (!run.session || run.session->position() == run.tokens_before)) {
    // A wrong argument says enough itself.
    if (received_signal != 0) tell("no new tokens had run: " + *arguments.save_state + " is as it was");
    return outcome;
  }
  const Status saved = guarded([&] { return run.session->save(*run.target); });
  if (!is_early()) return saved;
  tell_saved(run, saved);
  return outcome;
}

/// Says why the run failed, if it did; returns the exit code.
int exit_code(const Status& outcome, const Output& output) {
  if (received_signal != 0) return 128 + received_signal;
  if (output.error() == EPIPE) return 128 + SIGPIPE;
  if (output.error() != 0) {
    tell(std::string("standard output cannot be written: ") + std::strerror(output.error()) +
         ": free some space there, or send it elsewhere");
    return 1;
  }
  if (outcome) return 0;
  const ErrorCode code = outcome.error().code;
  tell(std::string(sala::name_of(code)) + ": " + outcome.error().message);
  return code >= ErrorCode::kEngineFailed || code == ErrorCode::kOutOfMemory ? 1 : 2;
}

int program(int count, char** values) {
  leave_on_signals();
  if (!fill_closed_streams()) {
    tell("standard output is closed: send it to a file, a pipe or /dev/null");
    return 2;
  }
  Output output(STDOUT_FILENO);
  const auto arguments = parse(count, values);
  if (!arguments) return exit_code(arguments.error(), output);
  if (!arguments->help && !arguments->version) return exit_code(run(*arguments, output), output);
  output.write(arguments->help ? std::string(kUsage) : "sala-run " SALA_VERSION "\n");
  return exit_code(success(), output);
}

}  // namespace

}  // namespace sala::cli

int main(int count, char** values) {
  try {
    return sala::cli::program(count, values);
  } catch (const std::exception&) {  // there was no memory for a message
    std::fprintf(stderr, "sala-run: %s\n", sala::cli::kNoMemory);
    return 1;
  }
}
