// The Python module sala_export.runtime._native: the nouns of include/sala, statuses turned into exceptions.
//
// The interpreter lock is released while the core works. A session is for one thread at a time: a second one that
// enters meanwhile, also from a progress callback, gets a SessionError.

#include <nanobind/nanobind.h>
#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "arrays.h"
#include "batch.h"
#include "constraint.h"
#include "errors.h"
#include "interpreter_lock.h"
#include "prefill.h"
#include "progress.h"
#include "py_session.h"
#include "python_engine.h"
#include "sala/model.h"
#include "sala/sampler.h"
#include "sala/state_target.h"
#include "sala/stop_strings.h"
#include "scheduler.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace sala::python {

namespace {

/// A state target until it is closed, and whether a call is in it.
class PyStateTarget {
 public:
  explicit PyStateTarget(StateTarget opened) : target_(std::move(opened)) {}

  /// Does `work` with the target, as the only one.
  template <class Work>
  void use(Work&& work) {
    const Alone alone(busy_);
    if (!target_) raise({ErrorCode::kInvalidArgument, "this state target is closed: open the path once more"});
    unwrap(work(*target_));
  }

  void close() {
    const Alone alone(busy_);
    target_.reset();
  }

 private:
  class Alone {
   public:
    explicit Alone(std::atomic<bool>& busy) : busy_(busy) {
      if (busy.exchange(true)) raise({ErrorCode::kInvalidArgument, "another call is at work with this state target"});
    }
    Alone(const Alone&) = delete;
    Alone& operator=(const Alone&) = delete;
    ~Alone() { busy_ = false; }

   private:
    std::atomic<bool>& busy_;
  };

  std::optional<StateTarget> target_;
  std::atomic<bool> busy_ = false;
};

PyStateTarget* open_target(const std::filesystem::path& path) {
  auto opened = [&] {
    const Unlocked unlocked;
    return StateTarget::open(path);
  }();
  return new PyStateTarget(unwrap(std::move(opened)));
}

nb::object tokens(PySession& session) { return copy(idle(session).tokens()); }

nb::object logits(PySession& session) {
  const auto values = idle(session).logits();
  return values.empty() ? nb::none() : copy(values);
}

struct PyGeneration {
  nb::object owner;
  PySession& session;
  std::shared_ptr<TokenConstraint> constraint;
  Generation generation;
};

Model load(const std::filesystem::path& bundle, const std::string& runtime,
           const std::optional<std::filesystem::path>& onnxruntime_library,
           const std::optional<std::filesystem::path>& operators_library,
           const std::optional<std::filesystem::path>& tensorrt_library,
           const std::optional<std::filesystem::path>& runtime_cache, bool decode_graph,
           const std::optional<std::filesystem::path>& weights, nb::object on_progress, const std::string& cpu_math,
           int32_t threads, bool verify_hashes, int bundle_descriptor, const std::string& manifest_sha256) {
  LoadOptions options;
  options.bundle_descriptor = bundle_descriptor;
  options.manifest_sha256 = manifest_sha256;
  options.runtime = runtime;
  options.onnxruntime_library = onnxruntime_library.value_or("");
  options.operators_library = operators_library.value_or("");
  options.tensorrt.library = tensorrt_library.value_or("");
  options.tensorrt.runtime_cache = runtime_cache.value_or("");
  options.tensorrt.decode_graph = decode_graph;
  options.weights = weights.value_or("");
  ProgressReporter reporter(std::move(on_progress));
  options.on_progress = [&](int64_t done, int64_t total) { return reporter(done, total); };
  options.cpu_math = unwrap(cpu_math_of(cpu_math));
  options.threads = threads;
  options.verify_hashes = verify_hashes;
  auto model = [&] {
    const Unlocked unlocked;
    return Model::load(bundle, options);
  }();
  reporter.rethrow();
  return unwrap(std::move(model));
}

/// A new session of what `make` returns without the lock of the interpreter.
template <class Make>
PySession* new_session(Make&& make) {
  auto session = [&] {
    const Unlocked unlocked;
    return make();
  }();
  return new PySession(unwrap(std::move(session)));
}

PySession* create_session(const Model& model, const SessionOptions& options) {
  // An engine in Python wants the lock for itself.
  return new_session([&] { return model.create_session(options); });
}

PySession* restore(const Model& model, const std::filesystem::path& path, const SessionOptions& options) {
  return new_session([&] { return model.restore(path, options); });
}

PySession* restore_parts(const Model& model, const std::vector<std::filesystem::path>& rows,
                         const std::filesystem::path& checkpoint, const SessionOptions& options, nb::object on_part) {
  ProgressReporter reporter(std::move(on_part));
  auto session = [&] {
    const Unlocked unlocked;
    return model.restore_parts(rows, checkpoint, options, std::ref(reporter));
  }();
  reporter.rethrow();
  return new PySession(unwrap(std::move(session)));
}

PySession* fork(PySession& session) {
  const Busy busy(session);
  return new_session([&] { return session.session.fork(); });
}

/// What `work` returns with a session, as the only one in it and without the lock of the interpreter.
template <class Work>
auto use(PySession& session, Work&& work) {
  auto done = [&] {
    const Working working(session);
    return work(session.session);
  }();
  return unwrap(std::move(done));
}

int64_t rewind(PySession& session, int64_t position) {
  return use(session, [&](Session& used) { return used.rewind(position); });
}

void checkpoint(PySession& session) {
  use(session, [](Session& used) { return used.checkpoint(); });
}

PyGeneration* generate(nb::object owner, const GenerateOptions& options) {
  PySession& session = nb::cast<PySession&>(owner);
  return new PyGeneration{owner, session, options.constraint, unwrap(idle(session).generate(options))};
}

std::optional<int32_t> next(PyGeneration& generation) {
  auto token = [&] {
    const Working working(generation.session);
    return generation.generation.next();
  }();
  if (!token) rethrow_of(generation.constraint);
  return unwrap(std::move(token));
}

std::optional<std::string_view> finish_reason(const PyGeneration& generation) {
  return told(generation.generation.finish_reason());
}

void save(PySession& session, const std::filesystem::path& path) {
  use(session, [&](Session& used) { return used.save(path); });
}

std::string save_rows(PySession& session, const std::filesystem::path& path, int64_t first, int64_t last) {
  return use(session, [&](Session& used) { return used.save_rows(path, first, last); });
}

std::string save_checkpoint(PySession& session, const std::filesystem::path& path, int64_t first, int64_t position) {
  return use(session, [&](Session& used) { return used.save_checkpoint(path, first, position); });
}

void save_to(PySession& session, PyStateTarget& target) {
  target.use([&](StateTarget& opened) {
    const Working working(session);
    return session.session.save(opened);
  });
}

void reset(PySession& session) {
  use(session, [](Session& used) { return used.reset(); });
}

int32_t sample_token(const LogitArray& logits, const TokenArray& context, const SamplingOptions& options,
                     size_t prompt_length, const std::optional<WordArray>& allowed) {
  std::span<const uint32_t> words;
  if (allowed) words = {allowed->data(), allowed->size()};
  return unwrap(sample({logits.data(), logits.size()}, view(context), options, prompt_length, words));
}

ToldLogprobs logprobs_of(const LogitArray& logits, int32_t token, int64_t top) {
  const TokenLogprobs logprobs = unwrap(token_logprobs({logits.data(), logits.size()}, token, top));
  return told(&logprobs);
}

void bind_options(nb::module_& module) {
  nb::class_<SamplingOptions>(module, "SamplingOptions")
      .def(
          "__init__",
          [](SamplingOptions* options, double temperature, int64_t top_k, double top_p, double repetition_penalty,
             uint64_t seed, double min_p, double frequency_penalty, double presence_penalty,
             std::map<int32_t, double> logit_bias) {
            new (options) SamplingOptions{temperature,
                                          top_k,
                                          top_p,
                                          repetition_penalty,
                                          seed,
                                          min_p,
                                          frequency_penalty,
                                          presence_penalty,
                                          std::move(logit_bias)};
          },
          nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "repetition_penalty"_a, "seed"_a, "min_p"_a,
          "frequency_penalty"_a, "presence_penalty"_a, "logit_bias"_a);

  nb::class_<GenerateOptions>(module, "GenerateOptions")
      .def(
          "__init__",
          [](GenerateOptions* options, int64_t max_new_tokens, const SamplingOptions& sampling,
             std::optional<std::vector<int32_t>> stop_tokens, std::optional<int64_t> logprobs, nb::object constraint,
             std::optional<int64_t> speculation) {
            new (options) GenerateOptions{
                max_new_tokens, sampling, std::move(stop_tokens), logprobs, constraint_of(std::move(constraint)),
                speculation};
          },
          nb::kw_only(), "max_new_tokens"_a, "sampling"_a, "stop_tokens"_a.none(), "logprobs"_a.none(),
          "constraint"_a.none(), "speculation"_a.none());

  nb::class_<SessionOptions>(module, "SessionOptions")
      .def(
          "__init__",
          [](SessionOptions* options, std::optional<int64_t> max_context, std::optional<int64_t> chunk_tokens,
             std::optional<int64_t> max_checkpoints) {
            new (options) SessionOptions{max_context, chunk_tokens, max_checkpoints};
          },
          nb::kw_only(), "max_context"_a.none(), "chunk_tokens"_a.none(), "max_checkpoints"_a.none());

  nb::class_<StopStrings>(module, "StopStrings")
      .def(
          "__init__",
          [](StopStrings* made, const std::vector<std::string>& strings) {
            new (made) StopStrings(unwrap(StopStrings::create(strings)));
          },
          "strings"_a)
      .def("push", &StopStrings::push, "piece"_a)
      .def("finish", &StopStrings::finish)
      .def_prop_ro("found", &StopStrings::found);
}

void bind_model(nb::module_& module) {
  nb::class_<Model>(module, "Model")
      .def_static("load", &load, "bundle"_a, nb::kw_only(), "runtime"_a, "onnxruntime_library"_a.none(),
                  "operators_library"_a.none(), "tensorrt_library"_a.none(), "runtime_cache"_a.none(), "decode_graph"_a,
                  "weights"_a.none(), "on_progress"_a.none(), "cpu_math"_a = "exact", "threads"_a, "verify_hashes"_a,
                  "bundle_descriptor"_a = -1, "manifest_sha256"_a = "")
      .def_static("create", &create_model, "engine"_a, nb::kw_only(), "source"_a, "fingerprint"_a, "vocab_size"_a,
                  "max_position_embeddings"_a, "eos_token_ids"_a, "inv_freq"_a, "kernel_size"_a, "kernel_stride"_a,
                  "dense_len"_a)
      .def_prop_ro("runtime", [](const Model& model) { return std::string(model.engine().name()); })
      .def_prop_ro("runtime_reason", &Model::runtime_reason)
      .def_prop_ro("on_host", [](const Model& model) { return model.engine().memory().is_on_host(); })
      .def_prop_ro("cache_bytes", &Model::cache_bytes)
      .def_prop_ro("precision", [](const Model& model) { return std::string(model.engine().precision()); })
      .def_prop_ro("fingerprint", [](const Model& model) { return model.config().fingerprint; })
      .def_prop_ro("dense_len", [](const Model& model) { return model.config().dense_len; })
      .def_prop_ro("vocab_size", [](const Model& model) { return model.config().vocab_size; })
      .def_prop_ro("eos_token_ids", [](const Model& model) { return model.config().eos_token_ids; })
      .def_prop_ro("default_max_context", &Model::default_max_context)
      .def_prop_ro("default_chunk_tokens",
                   [](const Model& model) { return model.engine().limits().default_chunk_tokens; })
      .def("create_session", &create_session, "options"_a)
      .def("restore", &restore, "path"_a, "options"_a)
      .def("restore_parts", &restore_parts, "rows"_a, "checkpoint"_a, "options"_a, "on_part"_a = nb::none())
      .def(
          "state_bytes", [](const Model& model, int64_t count) { return unwrap(model.state_bytes(count)); }, "tokens"_a)
      .def(
          "check_generate", [](const Model& model, const GenerateOptions& options) { unwrap(model.check(options)); },
          "options"_a);
}

void bind_session(nb::module_& module) {
  nb::class_<PyStateTarget>(module, "StateTarget")
      .def_static("open", &open_target, "path"_a)
      .def(
          "require_room",
          [](PyStateTarget& target, int64_t size) {
            target.use([&](StateTarget& opened) { return opened.require_room(size); });
          },
          "size"_a)
      .def("close", &PyStateTarget::close);

  nb::class_<PySession>(module, "Session")
      .def_prop_ro("position", [](const PySession& session) { return session.session.position(); })
      .def_prop_ro("past_length", [](const PySession& session) { return session.session.past_length(); })
      .def_prop_ro("max_context", [](const PySession& session) { return session.session.max_context(); })
      .def_prop_ro("chunk_tokens", [](const PySession& session) { return session.session.chunk_tokens(); })
      .def_prop_ro("tokens", &tokens)
      .def_prop_ro("logits", &logits)
      .def("score", &score, "token_ids"_a, nb::kw_only(), "top"_a, "context_length"_a.none(), "on_progress"_a.none())
      .def("generate", &generate, "options"_a)
      .def("save", &save, "path"_a)
      .def("save_to", &save_to, "target"_a)
      .def("save_rows", &save_rows, "path"_a, "first"_a, "last"_a)
      .def("save_checkpoint", &save_checkpoint, "path"_a, "first"_a, "position"_a)
      .def(
          "require_room", [](PySession& session, int64_t count) { unwrap(idle(session).require_room(count)); },
          "tokens"_a)
      .def("fork", &fork)
      .def("checkpoint", &checkpoint)
      .def_prop_ro("checkpoints",
                   [](PySession& session) {
                     const auto positions = idle(session).checkpoints();
                     return std::vector<int64_t>(positions.begin(), positions.end());
                   })
      .def("rewind", &rewind, "position"_a)
      .def("reset", &reset)
      .def("stop", [](PySession& session) { session.session.stop(); });

  nb::class_<PyGeneration>(module, "Generation")
      .def("next", &next)
      .def_prop_ro("logprobs", [](const PyGeneration& generation) { return told(generation.generation.logprobs()); })
      .def_prop_ro("speculation",
                   [](const PyGeneration& generation) {
                     const SpeculationCounts counts = generation.generation.speculation();
                     return std::tuple(counts.tokens, counts.drafted, counts.accepted);
                   })
      .def_prop_ro("finish_reason", &finish_reason);
}

}  // namespace

NB_MODULE(_native, module) {
  nb::set_leak_warnings(false);  // a daemon thread may hold a session when the interpreter ends
  bind_options(module);
  bind_model(module);
  bind_session(module);
  bind_prefiller(module);
  bind_batch(module);
  bind_scheduler(module);
  module.def("device_bytes", &device_bytes, "address"_a, "size"_a, "device"_a.none());
  module.def("sample", &sample_token, "logits"_a, "context"_a, "options"_a, nb::kw_only(), "prompt_length"_a,
             "allowed"_a.none());
  module.def("token_logprobs", &logprobs_of, "logits"_a, "token"_a, "top"_a);
}

}  // namespace sala::python
