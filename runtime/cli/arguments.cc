#include "arguments.h"

#include <getopt.h>

#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "sala/sampler.h"

namespace sala::cli {

extern const std::string_view kUsage = R"(usage: sala-run BUNDLE --tokens FILE [options]

Runs a bundle on token ids and prints the ids that it generates.

  --tokens FILE             prompt as decimal token ids, separated by white space. - is stdin
  --weights DIR             run the weights of this checkpoint, for example your fine-tune, on the bundle's engine
  --load-state FILE         continue a saved session
  --save-state FILE         save the session at the end, however it ends, so that you can continue it later
  --max-new-tokens N        stop after this many tokens (default 256)
  --max-context N           room for prompt and answer together, in tokens (default: what the model was made for)
  --chunk-tokens N          tokens per prefill step (default: the engine's)
  --temperature T           sampling temperature, 0 always picks the most likely token (default 0)
  --top-k N                 sample only from the N most likely tokens, 0 means all (default 0)
  --top-p P                 sample only from the most likely tokens of total probability P (default 1)
  --repetition-penalty R    values above 1 make repetition less likely (default 1)
  --min-p P                 sample only from tokens at least P times as probable as the likeliest (default 0)
  --frequency-penalty F     taken from the logit of a token for each time it is in the answer (default 0)
  --presence-penalty F      taken from the logit of a token that is in the answer (default 0)
  --logit-bias ID=BIAS      add this, from -100 to 100, to the logit of a token; may be given more than once
  --seed N                  random seed for sampling (default 0)
  --speculation N           draft up to N tokens from the text so far and check them in one step, 1 to 64
                            (default: none). The answer stays the same
  --runtime NAME            tensorrt runs on a GPU, onnxruntime on the CPU, auto chooses (default auto)
  --no-decode-graph         with tensorrt, enqueue every decode step instead of replaying a CUDA graph
  --runtime-cache FILE      with tensorrt, file of what was compiled for this GPU (default: beside the bundle)
  --cpu-math NAME           arithmetic on the CPU: exact, in 32 bits, or fast, with 16-bit inputs and caches and
                            8-bit inputs of int4 products (default exact)
  --threads N               threads that load weights and, on the CPU, compute, 0 means all cores (default 0)
  --verify-hashes           check the hash of every file first (weights are always checked when loaded)
  --onnxruntime PATH        path of libonnxruntime.so
  --operators PATH          path of libsala_ort.so
  --tensorrt PATH           path of libtensorrt_rtx.so.1 or libnvinfer.so
  --json                    print the result as JSON
  --version                 print the version
  -h, --help                print this message

You may write --option VALUE or --option=VALUE. After -- comes no option.

Exit codes: 0 after success, 1 if the run failed or its output could not be written, 2 if the bundle, a file or an
option is wrong, 129 if its terminal was lost, 130 if interrupted, 143 if terminated, 141 if the reader of standard
output went away.
)";

namespace {

template <class... Parts>
Error wrong(const Parts&... parts) {
  return error(ErrorCode::kInvalidArgument, parts..., " (see sala-run --help)");
}

template <class T>
std::function<bool(std::string_view)> number(T& target, T least = std::numeric_limits<T>::lowest()) {
  return [&target, least](std::string_view text) {
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), target);
    if constexpr (std::is_floating_point_v<T>) {
      if (!std::isfinite(target)) return false;
    }
    return parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && target >= least;
  };
}

std::function<bool(std::string_view)> positive(std::optional<int64_t>& target) {
  return [&target](std::string_view text) { return number(target.emplace(), int64_t{1})(text); };
}

/// `ID=BIAS`, each token once.
std::function<bool(std::string_view)> bias(std::map<int32_t, double>& target) {
  return [&target](std::string_view text) {
    const size_t sign = text.find('=');
    int32_t token = 0;
    double value = 0.0;
    return sign != std::string_view::npos && number(token, 0)(text.substr(0, sign)) &&
           number(value)(text.substr(sign + 1)) && target.emplace(token, value).second;
  };
}

template <class T>
std::function<bool(std::string_view)> text(T& target) {
  return [&target](std::string_view given) {
    target = std::string(given);
    return !given.empty();
  };
}

std::function<bool(std::string_view)> cpu_math(CpuMath& target) {
  return [&target](std::string_view name) {
    const auto math = cpu_math_of(name);
    if (math) target = *math;
    return static_cast<bool>(math);
  };
}

constexpr int kFirstOption = 256;  // above every letter

/// An option of the command line. Without `take` it is a flag.
struct Option {
  std::string_view name;
  std::function<bool(std::string_view)> take;
  bool* flag = nullptr;
};

std::vector<Option> options_of(Arguments& arguments) {
  SamplingOptions& sampling = arguments.generate.sampling;
  return {
      {"tokens", text(arguments.tokens)},
      {"weights", text(arguments.load.weights)},
      {"load-state", text(arguments.load_state)},
      {"save-state", text(arguments.save_state)},
      {"max-new-tokens", number(arguments.generate.max_new_tokens, int64_t{0})},
      {"max-context", positive(arguments.session.max_context)},
      {"chunk-tokens", positive(arguments.session.chunk_tokens)},
      {"temperature", number(sampling.temperature)},
      {"top-k", number(sampling.top_k)},
      {"top-p", number(sampling.top_p)},
      {"repetition-penalty", number(sampling.repetition_penalty)},
      {"min-p", number(sampling.min_p)},
      {"frequency-penalty", number(sampling.frequency_penalty)},
      {"presence-penalty", number(sampling.presence_penalty)},
      {"logit-bias", bias(sampling.logit_bias)},
      {"seed", number(sampling.seed)},
      {"speculation", positive(arguments.generate.speculation)},
      {"cpu-math", cpu_math(arguments.load.cpu_math)},
      {"threads", number(arguments.load.threads)},
      {"onnxruntime", text(arguments.load.onnxruntime_library)},
      {"operators", text(arguments.load.operators_library)},
      {"tensorrt", text(arguments.load.tensorrt.library)},
      {"runtime-cache", text(arguments.load.tensorrt.runtime_cache)},
      {"runtime", text(arguments.load.runtime)},
      {"verify-hashes", {}, &arguments.load.verify_hashes},
      {"no-decode-graph", {}, &arguments.no_decode_graph},
      {"json", {}, &arguments.json},
      {"version", {}, &arguments.version},
      {"help", {}, &arguments.help},
  };
}

/// Says why getopt_long has refused a word. `code` is its `optopt`: a flag that has a value, a letter that is no
/// option, or 0 for a name that is none or the beginning of several.
Error not_taken(std::string_view word, int code, const std::vector<Option>& options) {
  if (code >= kFirstOption)
    return wrong("--", options[static_cast<size_t>(code - kFirstOption)].name, " takes no value");
  if (code > 0) return wrong("unknown option -", static_cast<char>(code));
  const std::string_view name = word.substr(0, word.find('=')).substr(2);
  std::string meant;
  for (const Option& option : options) {
    if (option.name.starts_with(name)) meant.append(meant.empty() ? "--" : " or --").append(option.name);
  }
  if (meant.empty()) return wrong("unknown option --", name);
  return wrong("--", name, " can mean ", meant);
}

}  // namespace

Expected<Arguments> parse(int count, char** values) {
  Arguments arguments;
  const std::vector<Option> options = options_of(arguments);
  std::vector<option> table;
  for (const Option& each : options) {
    const int value = kFirstOption + static_cast<int>(table.size());
    table.push_back({each.name.data(), each.flag != nullptr ? no_argument : required_argument, nullptr, value});
  }
  table.push_back({});
  const auto take_bundle = [&](std::string_view word) -> Status {
    if (!arguments.bundle.empty()) return wrong("one bundle is enough, '", word, "' is too much");
    arguments.bundle = word;
    return success();
  };
  opterr = 0;  // messages are ours
  optind = 0;
  int found = 0;
  while ((found = getopt_long(count, values, "-:h", table.data(), nullptr)) != -1) {
    if (found == 1) {
      SALA_RETURN_IF_ERROR(take_bundle(optarg));
    } else if (found == 'h') {
      arguments.help = true;
    } else if (found == '?') {
      return not_taken(values[optind - 1], optopt, options);
    } else if (found == ':') {
      return wrong(values[optind - 1], " needs a value");
    } else {
      const Option& option = options[static_cast<size_t>(found - kFirstOption)];
      if (option.flag != nullptr) {
        *option.flag = true;
      } else if (!option.take(optarg)) {
        return wrong("--", option.name, ": '", optarg, "' is not a valid value");
      }
    }
  }
  for (; optind < count; ++optind) SALA_RETURN_IF_ERROR(take_bundle(values[optind]));
  if (arguments.help || arguments.version) return arguments;
  arguments.load.tensorrt.decode_graph = !arguments.no_decode_graph;
  if (arguments.bundle.empty()) return wrong("the bundle is missing");
  if (!arguments.tokens && !arguments.load_state) return wrong("--tokens is missing");
  SALA_RETURN_IF_ERROR(check(arguments.generate.sampling));
  return arguments;
}

}  // namespace sala::cli
