#include "engines/tensorrt/execution.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "sala/step_names.h"

namespace sala::tensorrt {

namespace {

/// Whether a token input has other shapes in other steps of a session.
bool depends_on_step(const TensorSpec& spec) {
  return std::any_of(spec.shape.begin(), spec.shape.end(), [](const Extent& each) {
    return each.symbol == step_names::kTokens || each.symbol == step_names::kRows;
  });
}

}  // namespace

Expected<std::unique_ptr<Execution>> TensorRtExecution::create(const LoadedPlan& plan,
                                                               std::shared_ptr<StepBuffers> buffers,
                                                               std::span<const CacheBinding> caches,
                                                               CacheContents contents) {
  const cuda::Device::Current current(*plan.device());
  const std::lock_guard turn(buffers->turn());
  std::unique_ptr<TensorRtExecution> execution(new TensorRtExecution(plan, buffers, caches));
  SALA_RETURN_IF_ERROR(execution->open_stream());
  SALA_RETURN_IF_ERROR(execution->add_context(Profile::kDecode));
  SALA_RETURN_IF_ERROR(execution->set_sizes(Profile::kDecode, execution->decode_sizes()));
  if (contents == CacheContents::kEmpty) {
    SALA_RETURN_IF_ERROR(execution->add_context(Profile::kPrefill));
    SALA_RETURN_IF_ERROR(execution->warm_up());
    if (plan.options().decode_graph) SALA_RETURN_IF_ERROR(execution->capture_decode());
  }
  if (plan.runtime_cache() != nullptr) SALA_RETURN_IF_ERROR(plan.runtime_cache()->save());
  return std::unique_ptr<Execution>(std::move(execution));
}

TensorRtExecution::~TensorRtExecution() {
  const cuda::Device::Current current(*plan_.device());
  // A step that failed may have left work behind. Its outcome does not matter any more.
  static_cast<void>(synchronize());
  // What prefill compiled. It only saves time, and the next session tries again: nobody is left to tell of a failure.
  if (plan_.runtime_cache() != nullptr) static_cast<void>(plan_.runtime_cache()->save());
  decode_graph_ = DecodeGraph();
  for (Context& each : contexts_) {
    each.context.reset();
    each.config.reset();
  }
  if (stream_ != nullptr && plan_.options().stream == nullptr) plan_.driver().stream_destroy(stream_);
}

Status TensorRtExecution::open_stream() {
  stream_ = static_cast<cuda::CUstream>(plan_.options().stream);
  if (stream_ != nullptr) return success();
  return plan_.driver().check(plan_.driver().stream_create(&stream_, cuda::kStreamNonBlocking), "open a stream");
}

Status TensorRtExecution::add_context(Profile profile) {
  auto context = create_context(profile);
  if (!context) return context.error();
  SALA_RETURN_IF_ERROR(bind(context->context.get()));
  contexts_[static_cast<size_t>(profile)] = *std::move(context);
  return success();
}

Expected<TensorRtExecution::Context> TensorRtExecution::create_context(Profile profile) const {
  const Interface& interface = plan_.interface();
  void* engine = plan_.engine();
  Object config, context;
  if (interface.has_runtime_cache()) {
    config.reset(interface.create_runtime_config(engine));
    if (!config) return plan_.failure("configure " + plan_.name());
    interface.set_execution_context_allocation_strategy(config.get(), kUserManaged);
    if (profile == Profile::kDecode) {
      // The default compiles for the exact shapes in the background, and a graph would keep the slower kernels that
      // stand in until then.
      interface.set_dynamic_shapes_kernel_specialization_strategy(config.get(), kEagerSpecialization);
    }
    if (plan_.runtime_cache() != nullptr) SALA_RETURN_IF_ERROR(plan_.runtime_cache()->attach(config.get()));
    context.reset(interface.create_execution_context_with_runtime_config(engine, config.get()));
  } else {
    context.reset(interface.create_execution_context(engine, kUserManaged));
  }
  if (!context) return plan_.failure("make a context of " + plan_.name());
  if (!interface.set_optimization_profile_async(context.get(), kProfileIndex[static_cast<size_t>(profile)], stream_)) {
    return plan_.failure("choose a profile of " + plan_.name());
  }
  SALA_RETURN_IF_ERROR(synchronize());
  const Buffer& activations = buffers_->activations();
  interface.set_device_memory(context.get(), activations.data(), activations.bytes());
  return Context{std::move(config), std::move(context)};
}

Status TensorRtExecution::bind(void* context) const {
  for (const DeviceWeights::Placed& weight : plan_.weights().placed()) {
    SALA_RETURN_IF_ERROR(set_address(context, weight.name, weight.data));
  }
  for (const CacheBinding& cache : caches_) {
    SALA_RETURN_IF_ERROR(set_address(context, cache.past_name, cache.data));
    SALA_RETURN_IF_ERROR(set_address(context, cache.present_name, cache.data));
    SALA_RETURN_IF_ERROR(set_shape(context, cache.past_name, cache.shape));
  }
  for (const TensorSpec& input : plan_.token_inputs()) {
    SALA_RETURN_IF_ERROR(set_address(context, input.name, buffers_->device(input.name)));
    if (depends_on_step(input)) continue;
    SALA_RETURN_IF_ERROR(set_shape(context, input.name, input.bound(symbols_of(decode_sizes()))));
  }
  const std::string& logits = plan_.logits().name;
  return set_address(context, logits, buffers_->device(logits));
}

Status TensorRtExecution::set_address(void* context, std::string_view name, void* data) const {
  const std::string text(name);
  if (plan_.interface().set_tensor_address(context, text.c_str(), data)) return success();
  return plan_.failure("bind " + text);
}

Status TensorRtExecution::set_shape(void* context, std::string_view name, const Shape& shape) const {
  const std::string text(name);
  Dims dims{static_cast<int32_t>(shape.size()), {}};
  std::copy(shape.begin(), shape.end(), dims.extents);
  if (plan_.interface().set_input_shape(context, text.c_str(), &dims)) return success();
  return plan_.failure("take " + text + " of shape " + to_string(shape) + " in " + plan_.name());
}

SymbolSizes TensorRtExecution::symbols_of(const StepSizes& sizes) const {
  return {{std::string(step_names::kBatch), batch_},
          {std::string(step_names::kTokens), sizes.tokens},
          {std::string(step_names::kRows), sizes.rows}};
}

Status TensorRtExecution::set_sizes(Profile profile, const StepSizes& sizes) {
  for (const TensorSpec& input : plan_.token_inputs()) {
    if (!depends_on_step(input)) continue;
    SALA_RETURN_IF_ERROR(set_shape(context(profile), input.name, input.bound(symbols_of(sizes))));
  }
  return success();
}

int64_t TensorRtExecution::step_bytes(const TensorSpec& spec, const StepSizes& sizes) const {
  return bytes_of(spec.dtype, elements_of(spec.bound(symbols_of(sizes))));
}

Status TensorRtExecution::warm_up() {
  // Token 0 at position 0 of an empty context.
  buffers_->clear_inputs();
  SALA_RETURN_IF_ERROR(enqueue(Profile::kDecode, decode_sizes()));
  return synchronize();
}

Status TensorRtExecution::capture_decode() {
  constexpr const char* kWithout = "; load with decode_graph = false (sala-run --no-decode-graph) to run without";
  const Interface& interface = plan_.interface();
  if (interface.is_stream_capturable && !interface.is_stream_capturable(context(Profile::kDecode), stream_)) {
    return error(ErrorCode::kEngineFailed, "TensorRT cannot capture ", plan_.name(), " as a CUDA graph", kWithout);
  }
  auto graph =
      DecodeGraph::capture(plan_.driver(), stream_, [this] { return enqueue(Profile::kDecode, decode_sizes()); });
  if (!graph) return error(ErrorCode::kEngineFailed, graph.error().message, kWithout);
  decode_graph_ = *std::move(graph);
  return success();
}

Status TensorRtExecution::reserve_rows(int64_t rows) {
  const cuda::Device::Current current(*plan_.device());
  const std::lock_guard turn(buffers_->turn());
  return buffers_->reserve_logits(step_bytes(plan_.logits(), {1, rows}));
}

Status TensorRtExecution::run(Profile profile, const StepInputs& step, std::span<float> logits) {
  const cuda::Device::Current current(*plan_.device());
  const std::lock_guard turn(buffers_->turn());
  Status done = run_in_turn(profile, step);
  // Also after a failure: the next step of another session must find the buffers at rest.
  if (const Status ended = synchronize(); done && !ended) done = ended;
  if (!done) return done;
  std::memcpy(logits.data(), buffers_->host_logits(static_cast<int64_t>(logits.size_bytes())), logits.size_bytes());
  // A batch has no step before its first one, and TensorRT wants one before a capture, which runs nothing.
  const bool is_captured = profile != Profile::kDecode || !plan_.options().decode_graph || decode_graph_;
  return is_captured ? success() : capture_decode();
}

Status TensorRtExecution::run_in_turn(Profile profile, const StepInputs& step) {
  SALA_RETURN_IF_ERROR(stage(step));
  if (profile == Profile::kDecode) {
    return decode_graph_ ? decode_graph_.launch(stream_) : enqueue(profile, decode_sizes());
  }
  const StepSizes sizes{step.tokens(), static_cast<int64_t>(step.logit_rows.size())};
  const int64_t logits_bytes = step_bytes(plan_.logits(), sizes);
  SALA_RETURN_IF_ERROR(buffers_->reserve_logits(logits_bytes));
  // Another session may have moved them to larger ones.
  SALA_RETURN_IF_ERROR(set_address(context(profile), step_names::kLogits, buffers_->device_logits(logits_bytes)));
  if (sizes != prefill_sizes_) {
    prefill_sizes_ = {};  // until the context has taken the new ones
    SALA_RETURN_IF_ERROR(set_sizes(profile, sizes));
    prefill_sizes_ = sizes;
  }
  return enqueue(profile, sizes);
}

Status TensorRtExecution::stage(const StepInputs& step) {
  for (const Tensor& input : step.tensors()) {
    const int64_t bytes = bytes_of(input.dtype, elements_of(input.shape));
    void* to = buffers_->host(input.name);
    if (to == nullptr || bytes > buffers_->capacity(input.name)) {
      return error(ErrorCode::kInvalidArgument, "input ", input.name, " of shape ", to_string(input.shape),
                   " is not one that this engine takes");
    }
    std::memcpy(to, input.data, static_cast<size_t>(bytes));
  }
  return success();
}

Status TensorRtExecution::enqueue(Profile profile, const StepSizes& sizes) const {
  const cuda::CudaDriver& driver = plan_.driver();
  for (const TensorSpec& input : plan_.token_inputs()) {
    SALA_RETURN_IF_ERROR(
        driver.check(driver.memcpy_htod_async(cuda::address(buffers_->device(input.name)), buffers_->host(input.name),
                                              static_cast<size_t>(step_bytes(input, sizes)), stream_),
                     "copy inputs"));
  }
  if (!plan_.interface().enqueue(context(profile), stream_)) {
    return plan_.failure("run " + plan_.name());
  }
  const int64_t bytes = step_bytes(plan_.logits(), sizes);
  return driver.check(
      driver.memcpy_dtoh_async(buffers_->host_logits(bytes), cuda::address(buffers_->device_logits(bytes)),
                               static_cast<size_t>(bytes), stream_),
      "copy logits");
}

Status TensorRtExecution::synchronize() const {
  return plan_.driver().check(plan_.driver().stream_synchronize(stream_), "finish a step");
}

}  // namespace sala::tensorrt
