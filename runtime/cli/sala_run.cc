// sala-run: token ids in, generated token ids out.

#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "sala/model.h"
#include "sala/prefiller.h"
#include "token_ids.h"

namespace {

using sala::ErrorCode;

constexpr std::string_view kUsage = R"(usage: sala-run BUNDLE --tokens FILE [options]

Runs a bundle on token ids and prints the ids that it generates.

  --tokens FILE             prompt as decimal token ids, separated by white space. - is stdin
  --weights DIR             run the weights of this checkpoint, for example your fine-tune, on the bundle's engine
  --load-state FILE         continue a saved session
  --save-state FILE         save the session at the end, so that you can continue it later
  --max-new-tokens N        stop after this many tokens (default 256)
  --max-context N           room for prompt and answer together, in tokens (default: what the model was made for)
  --chunk-tokens N          tokens per prefill step (default: the engine's)
  --temperature T           sampling temperature, 0 always picks the most likely token (default 0)
  --top-k N                 sample only from the N most likely tokens, 0 means all (default 0)
  --top-p P                 sample only from the most likely tokens of total probability P (default 1)
  --repetition-penalty R    values above 1 make repetition less likely (default 1)
  --seed N                  random seed for sampling (default 0)
  --runtime NAME            tensorrt runs on a GPU, onnxruntime on the CPU, auto chooses (default auto)
  --no-decode-graph         with tensorrt, enqueue every decode step instead of replaying a CUDA graph
  --runtime-cache FILE      with tensorrt, file of what was compiled for this GPU (default: beside the bundle)
  --threads N               threads that load weights and, on the CPU, compute, 0 means all cores (default 0)
  --verify-hashes           check the hash of every file first (weights are always checked when loaded)
  --onnxruntime PATH        path of libonnxruntime.so
  --operators PATH          path of libsala_ort.so
  --tensorrt PATH           path of libtensorrt_rtx.so.1 or libnvinfer.so
  --json                    print the result as JSON
  --help                    print this message

Exit codes: 0 after success, 1 if the run failed, 2 if the bundle, a file or an option is wrong, 130 if interrupted.
)";

struct Arguments {
  std::string bundle;
  std::optional<std::string> tokens;
  std::optional<std::string> load_state;
  std::optional<std::string> save_state;
  sala::LoadOptions load;
  sala::SessionOptions session;
  sala::GenerateOptions generate;
  bool no_decode_graph = false;
  bool json = false;
  bool help = false;
};

volatile std::sig_atomic_t interrupted = 0;

sala::Error wrong(const std::string& message) {
  return error(ErrorCode::kInvalidArgument, message, " (see sala-run --help)");
}

template <class T>
std::function<bool(std::string_view)> number(T& target) {
  return [&target](std::string_view text) {
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), target);
    return parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
  };
}

template <class T>
std::function<bool(std::string_view)> optional_number(std::optional<T>& target) {
  return [&target](std::string_view text) { return number(target.emplace())(text); };
}

template <class T>
std::function<bool(std::string_view)> text(T& target) {
  return [&target](std::string_view given) {
    target = std::string(given);
    return !given.empty();
  };
}

/// Shows how far the weights are, every second, and lets Ctrl-C stop them.
std::function<bool(int64_t, int64_t)> load_progress() {
  using Clock = std::chrono::steady_clock;
  return [shown = Clock::now()](int64_t done, int64_t total) mutable {
    if (Clock::now() - shown > std::chrono::seconds(1)) {
      shown = Clock::now();
      std::fprintf(stderr, "weights %lld/%lld MiB\n", static_cast<long long>(done >> 20),
                   static_cast<long long>(total >> 20));
    }
    return interrupted == 0;
  };
}

sala::Expected<Arguments> parse(int count, char** values) {
  Arguments arguments;
  sala::SamplingOptions& sampling = arguments.generate.sampling;
  const std::map<std::string_view, std::function<bool(std::string_view)>> valued = {
      {"--tokens", text(arguments.tokens)},
      {"--weights", text(arguments.load.weights)},
      {"--load-state", text(arguments.load_state)},
      {"--save-state", text(arguments.save_state)},
      {"--max-new-tokens", number(arguments.generate.max_new_tokens)},
      {"--max-context", optional_number(arguments.session.max_context)},
      {"--chunk-tokens", optional_number(arguments.session.chunk_tokens)},
      {"--temperature", number(sampling.temperature)},
      {"--top-k", number(sampling.top_k)},
      {"--top-p", number(sampling.top_p)},
      {"--repetition-penalty", number(sampling.repetition_penalty)},
      {"--seed", number(sampling.seed)},
      {"--threads", number(arguments.load.threads)},
      {"--onnxruntime", text(arguments.load.onnxruntime_library)},
      {"--operators", text(arguments.load.operators_library)},
      {"--tensorrt", text(arguments.load.tensorrt.library)},
      {"--runtime-cache", text(arguments.load.tensorrt.runtime_cache)},
      {"--runtime", text(arguments.load.runtime)},
  };
  const std::map<std::string_view, bool*> flags = {{"--verify-hashes", &arguments.load.verify_hashes},
                                                   {"--no-decode-graph", &arguments.no_decode_graph},
                                                   {"--json", &arguments.json},
                                                   {"--help", &arguments.help}};
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (const auto flag = flags.find(name); flag != flags.end()) {
      *flag->second = true;
    } else if (const auto option = valued.find(name); option != valued.end()) {
      if (i + 1 == count) return wrong(name + " needs a value");
      const std::string value = values[++i];
      if (!option->second(value)) return wrong(name + ": '" + value + "' is not a valid value");
    } else if (name.starts_with("--")) {
      return wrong("unknown option " + name);
    } else if (arguments.bundle.empty()) {
      arguments.bundle = name;
    } else {
      return wrong("one bundle is enough, '" + name + "' is too much");
    }
  }
  arguments.load.tensorrt.decode_graph = !arguments.no_decode_graph;
  arguments.load.on_progress = load_progress();
  if (!arguments.help && arguments.bundle.empty()) return wrong("the bundle is missing");
  if (!arguments.help && !arguments.tokens && !arguments.load_state) return wrong("--tokens is missing");
  return arguments;
}

sala::Expected<std::vector<int32_t>> read_tokens(const std::string& path) {
  std::FILE* file = path == "-" ? stdin : std::fopen(path.c_str(), "re");
  if (file == nullptr) return wrong(path + " cannot be opened");
  std::string text;
  char block[65536];
  size_t count;
  while ((count = std::fread(block, 1, sizeof block, file)) > 0) text.append(block, count);
  const bool failed = std::ferror(file) != 0;
  if (file != stdin) std::fclose(file);
  if (failed) return wrong(path + " cannot be read");
  return sala::parse_token_ids(text, path);
}

std::string_view name_of(sala::FinishReason reason) {
  switch (reason) {
    case sala::FinishReason::kStopToken:
      return "stop_token";
    case sala::FinishReason::kMaxNewTokens:
      return "max_new_tokens";
    case sala::FinishReason::kMaxContext:
      return "max_context";
    case sala::FinishReason::kNone:
      break;
  }
  return "none";
}

sala::Status generate(sala::Session& session, const Arguments& arguments) {
  auto generation = session.generate(arguments.generate);
  if (!generation) return generation.error();
  const auto prompt_tokens = session.position();
  std::vector<int32_t> tokens;
  while (interrupted == 0) {
    const auto token = generation->next();
    if (!token) return token.error();
    if (!*token) break;
    tokens.push_back(**token);
    if (!arguments.json) std::cout << (tokens.size() > 1 ? " " : "") << **token << std::flush;
  }
  if (!arguments.json) {
    std::cout << std::endl;
    return sala::success();
  }
  const nlohmann::json result = {
      {"prompt_tokens", prompt_tokens}, {"tokens", tokens}, {"finish_reason", name_of(generation->finish_reason())}};
  std::cout << result.dump() << std::endl;
  return sala::success();
}

sala::Status run(const Arguments& arguments) {
  const auto model = sala::Model::load(arguments.bundle, arguments.load);
  if (!model) return model.error();
  if (const std::string& reason = model->runtime_reason(); !reason.empty()) {
    std::fprintf(stderr, "sala-run: not on tensorrt: %s\n", reason.c_str());
  }
  auto session = arguments.load_state ? model->restore(*arguments.load_state, arguments.session)
                                      : model->create_session(arguments.session);
  if (!session) return session.error();
  if (arguments.tokens) {
    const auto tokens = read_tokens(*arguments.tokens);
    if (!tokens) return tokens.error();
    sala::PrefillOptions options;
    options.on_progress = [](const sala::PrefillProgress& progress) {
      std::fprintf(stderr, "prefill %lld/%lld tokens  %.1f tok/s\n", static_cast<long long>(progress.tokens_done),
                   static_cast<long long>(progress.tokens_total.value_or(0)),
                   static_cast<double>(progress.tokens_done) / progress.seconds);
      return interrupted == 0;
    };
    if (const auto logits = session->prefill(*tokens, options); !logits) return logits.error();
  }
  SALA_RETURN_IF_ERROR(generate(*session, arguments));
  if (arguments.save_state && interrupted == 0) return session->save(*arguments.save_state);
  return sala::success();
}

}  // namespace

int main(int count, char** values) {
  const auto arguments = parse(count, values);
  if (arguments && arguments->help) {
    std::cout << kUsage;
    return 0;
  }
  std::signal(SIGINT, [](int) { interrupted = 1; });
  const sala::Status outcome = arguments ? run(*arguments) : sala::Status(arguments.error());
  if (interrupted != 0) return 130;
  if (outcome) return 0;
  std::cerr << "sala-run: " << sala::name_of(outcome.error().code) << ": " << outcome.error().message << std::endl;
  const bool while_running = outcome.error().code >= ErrorCode::kEngineFailed;
  return while_running ? 1 : 2;
}
