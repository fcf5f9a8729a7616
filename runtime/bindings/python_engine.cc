#include "python_engine.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <utility>

#include "errors.h"
#include "interpreter_lock.h"
#include "sala/engine.h"

namespace nb = nanobind;

namespace sala::python {

namespace {

/// Calls Python from the core, which has not the interpreter's lock and must not see exceptions.
template <class Call>
auto called(const Call& call) -> Expected<decltype(call())> {
  const Locked locked;
  try {
    return until_the_interpreter_ends(call);
  } catch (const nb::python_error& raised) {
    return from_python(raised);
  } catch (const nb::cast_error&) {
    return error(ErrorCode::kEngineFailed, "the engine in Python returned a value of another type than it must");
  }
}

/// An object that may be let go from any thread, with or without the interpreter's lock.
class Held {
 public:
  explicit Held(nb::object object) : object_(std::move(object)) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    const Locked locked;
    object_.reset();
  }
  auto attr(const char* name) const { return object_.attr(name); }

 private:
  nb::object object_;
};

nb::dlpack::dtype element_type(DType dtype) {
  switch (dtype) {
    case DType::kInt32:
      return nb::dtype<int32_t>();
    case DType::kInt64:
      return nb::dtype<int64_t>();
    default:  // token inputs and logits have no other
      return nb::dtype<float>();
  }
}

nb::object array_view(const Tensor& tensor) {
  const std::vector<size_t> shape(tensor.shape.begin(), tensor.shape.end());
  return nb::ndarray<nb::numpy>(tensor.data, shape.size(), shape.data(), nb::handle(), nullptr,
                                element_type(tensor.dtype))
      .cast(nb::rv_policy::reference);
}

/// The memory of the engine's device: an ordinal of a GPU, or None for the host.
std::unique_ptr<Memory> memory_of(const nb::object& device) {
  if (device.is_none()) return paged_host_memory();
  int ordinal = 0;
  if (PyBool_Check(device.ptr()) || !nb::try_cast(device, ordinal, false)) {
    raise({ErrorCode::kInvalidArgument, "the engine's device is the ordinal of a GPU, or None for the host's memory"});
  }
  return unwrap(cuda_memory(ordinal));
}

class PythonExecution final : public Execution {
 public:
  explicit PythonExecution(nb::object execution) : execution_(std::move(execution)) {}

  Status run(Profile, const StepInputs& step, std::span<float> logits) override {
    return called([&] {
      nb::dict arrays;
      for (const Tensor& input : step.tensors()) {
        arrays[nb::str(input.name.data(), input.name.size())] = array_view(input);
      }
      const auto rows = static_cast<int64_t>(step.logit_rows.size());
      const Shape shape{rows, static_cast<int64_t>(logits.size()) / rows};
      execution_.attr("run")(arrays, array_view({{}, DType::kFloat32, shape, logits.data()}));
      return std::monostate{};
    });
  }

 private:
  Held execution_;
};

DType dtype_of(const std::string& name) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt32, DType::kInt64}) {
    if (name_of(dtype) == name) return dtype;
  }
  raise({ErrorCode::kInvalidArgument, "the engine has a tensor of type " + name + ", which no step has"});
}

std::vector<TensorSpec> specs_of(nb::handle described) {
  std::vector<TensorSpec> specs;
  for (nb::handle item : described) {
    TensorSpec spec{nb::cast<std::string>(item.attr("name")), dtype_of(nb::cast<std::string>(item.attr("dtype"))), {}};
    for (nb::handle extent : nb::object(item.attr("shape"))) {
      if (nb::isinstance<nb::str>(extent)) {
        spec.shape.push_back({0, nb::cast<std::string>(extent)});
      } else {
        spec.shape.push_back({nb::cast<int64_t>(extent), {}});
      }
    }
    specs.push_back(std::move(spec));
  }
  return specs;
}

class PythonEngine final : public Engine {
 public:
  explicit PythonEngine(nb::object engine)
      : name_(nb::cast<std::string>(engine.attr("name"))),
        precision_(nb::cast<std::string>(engine.attr("precision"))),
        inputs_(specs_of(nb::object(engine.attr("inputs")))),
        outputs_(specs_of(nb::object(engine.attr("outputs")))),
        limits_{.max_context = nb::cast<int64_t>(engine.attr("max_context")),
                .max_chunk_tokens = nb::cast<int64_t>(engine.attr("max_chunk_tokens")),
                .default_chunk_tokens = nb::cast<int64_t>(engine.attr("default_chunk_tokens")),
                .max_batch = nb::cast<int64_t>(engine.attr("max_batch")),
                .max_logit_rows = nb::cast<int64_t>(engine.attr("max_logit_rows"))},
        memory_(memory_of(engine.attr("device"))),
        engine_(std::move(engine)) {}

  std::string_view name() const override { return name_; }
  std::string_view precision() const override { return precision_; }
  std::span<const TensorSpec> inputs() const override { return inputs_; }
  std::span<const TensorSpec> outputs() const override { return outputs_; }
  EngineLimits limits() const override { return limits_; }
  Memory& memory() const override { return *memory_; }

  Status prepare(int64_t chunk_tokens) const override {
    return called([&] {
      engine_.attr("prepare")(chunk_tokens);
      return std::monostate{};
    });
  }

  Expected<std::unique_ptr<Execution>> create_execution(std::span<const CacheBinding> caches,
                                                        CacheContents) const override {
    return called([&]() -> std::unique_ptr<Execution> {
      nb::dict bound;
      for (const CacheBinding& cache : caches) {
        bound[nb::str(cache.past_name.data(), cache.past_name.size())] =
            nb::make_tuple(reinterpret_cast<uintptr_t>(cache.data), nb::cast(cache.shape));
      }
      return std::make_unique<PythonExecution>(nb::object(engine_.attr("create_execution")(bound)));
    });
  }

 private:
  std::string name_;
  std::string precision_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
  EngineLimits limits_;
  std::unique_ptr<Memory> memory_;
  Held engine_;
};

}  // namespace

nb::object device_bytes(uintptr_t address, size_t bytes, const nb::object& device) {
  const bool on_host = device.is_none();
  nb::ndarray<uint8_t, nb::ndim<1>> view(
      reinterpret_cast<void*>(address), {bytes}, nb::handle(), {}, nb::dtype<uint8_t>(),
      on_host ? nb::device::cpu::value : nb::device::cuda::value, on_host ? 0 : nb::cast<int>(device));
  return view.cast(nb::rv_policy::reference);
}

Model create_model(nb::object engine, std::string source, std::string fingerprint, int64_t vocab_size,
                   int64_t max_position_embeddings, std::vector<int32_t> eos_token_ids, std::vector<float> inv_freq,
                   int64_t kernel_size, int64_t kernel_stride, int64_t dense_len) {
  ModelConfig config;
  config.source = std::move(source);
  config.fingerprint = std::move(fingerprint);
  config.vocab_size = vocab_size;
  config.max_position_embeddings = max_position_embeddings;
  config.eos_token_ids = std::move(eos_token_ids);
  config.inv_freq = std::move(inv_freq);
  config.kernel_size = kernel_size;
  config.kernel_stride = kernel_stride;
  config.dense_len = dense_len;
  return unwrap(Model::create(std::move(config), std::make_shared<PythonEngine>(std::move(engine))));
}

}  // namespace sala::python
