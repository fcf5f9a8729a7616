#include "engines/tensorrt/execution.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace sala::tensorrt {

namespace {

CUdeviceptr address(const void* data) { return reinterpret_cast<CUdeviceptr>(data); }

int64_t bytes_of(const TensorSpec& spec, int64_t tokens) {
  return elements_of(spec.bound({{"batch", 1}, {"tokens", tokens}})) * sala::bytes_of(spec.dtype);
}

bool depends_on_tokens(const TensorSpec& spec) {
  return std::any_of(spec.shape.begin(), spec.shape.end(), [](const Extent& each) { return each.symbol == "tokens"; });
}

}  // namespace

Expected<std::unique_ptr<Execution>> TensorRtExecution::create(const Plans& plans,
                                                               std::span<const CacheBinding> caches) {
  const Device::Current current(*plans.device());
  std::unique_ptr<TensorRtExecution> execution(new TensorRtExecution(plans, caches));
  auto buffers = StepBuffers::create(plans.memory(), plans.pinned(), plans.buffer_sizes());
  if (!buffers) return buffers.error();
  execution->buffers_ = *std::move(buffers);
  SALA_RETURN_IF_ERROR(execution->open_stream());
  SALA_RETURN_IF_ERROR(execution->create_contexts());
  SALA_RETURN_IF_ERROR(execution->warm_up());
  if (plans.options().decode_graph) SALA_RETURN_IF_ERROR(execution->capture_decode());
  if (plans.runtime_cache() != nullptr) SALA_RETURN_IF_ERROR(plans.runtime_cache()->save());
  return std::unique_ptr<Execution>(std::move(execution));
}

TensorRtExecution::~TensorRtExecution() {
  const Device::Current current(*plans_.device());
  // A step that failed may have left work behind. Its outcome does not matter any more.
  static_cast<void>(synchronize());
  // What prefill compiled. It only saves time, and the next session tries again: nobody is left to tell of a failure.
  if (plans_.runtime_cache() != nullptr) static_cast<void>(plans_.runtime_cache()->save());
  decode_graph_ = DecodeGraph();
  contexts_.clear();
  if (stream_ != nullptr && plans_.options().stream == nullptr) plans_.driver().stream_destroy(stream_);
}

Status TensorRtExecution::open_stream() {
  stream_ = static_cast<CUstream>(plans_.options().stream);
  if (stream_ != nullptr) return success();
  return plans_.driver().check(plans_.driver().stream_create(&stream_, kStreamNonBlocking), "open a stream");
}

Status TensorRtExecution::create_contexts() {
  for (const Shard& shard : plans_.shards()) {
    Contexts& contexts = contexts_.emplace_back();
    for (const Profile profile : {Profile::kPrefill, Profile::kDecode}) {
      auto context = create_context(shard, contexts, profile);
      if (!context) return context.error();
      SALA_RETURN_IF_ERROR(bind(shard, context->get()));
      contexts.by_profile[static_cast<size_t>(profile)] = *std::move(context);
    }
  }
  return set_tokens(Profile::kDecode, 1);
}

Expected<Object> TensorRtExecution::create_context(const Shard& shard, Contexts& contexts, Profile profile) const {
  const Interface& interface = plans_.interface();
  void* engine = shard.engine.get();
  Object context;
  if (interface.has_runtime_cache()) {
    Object config(call<void*>(engine, interface.create_runtime_config));
    if (!config) return plans_.failure("configure " + shard.plan);
    call<void>(config.get(), interface.set_execution_context_allocation_strategy, kUserManaged);
    if (profile == Profile::kDecode) {
      // The default compiles for the exact shapes in the background, and a graph would keep the slower kernels that
      // stand in until then.
      call<void>(config.get(), interface.set_dynamic_shapes_kernel_specialization_strategy, kEagerSpecialization);
    }
    if (plans_.runtime_cache() != nullptr) SALA_RETURN_IF_ERROR(plans_.runtime_cache()->attach(config.get()));
    context.reset(call<void*>(engine, interface.create_execution_context_with_runtime_config, config.get()));
    contexts.config[static_cast<size_t>(profile)] = std::move(config);
  } else {
    context.reset(call<void*>(engine, interface.create_execution_context, kUserManaged));
  }
  if (!context) return plans_.failure("make a context of " + shard.plan);
  if (!call<bool>(context.get(), interface.set_optimization_profile_async, kProfileIndex[static_cast<size_t>(profile)],
                  static_cast<void*>(stream_))) {
    return plans_.failure("choose a profile of " + shard.plan);
  }
  SALA_RETURN_IF_ERROR(synchronize());
  const Buffer& activations = buffers_->activations();
  call<void>(context.get(), interface.set_device_memory, activations.data(), activations.bytes());
  return context;
}

Status TensorRtExecution::bind(const Shard& shard, void* context) const {
  for (const auto* specs : {&shard.inputs, &shard.outputs}) {
    for (const TensorSpec& spec : *specs) {
      const CacheBinding* cache = find_cache(spec.name);
      void* data = cache != nullptr ? cache->data : buffers_->device(spec.name);
      if (data == nullptr) {
        return error(ErrorCode::kBundleDamaged, shard.plan, " has the tensor ", spec.name,
                     ", which is not part of a step: build the bundle again");
      }
      if (!call<bool>(context, plans_.interface().set_tensor_address, spec.name.c_str(), data)) {
        return plans_.failure("bind " + spec.name);
      }
      if (specs == &shard.outputs || depends_on_tokens(spec)) continue;
      SALA_RETURN_IF_ERROR(
          set_shape(shard, context, spec.name.c_str(), cache != nullptr ? cache->shape : spec.bound({{"batch", 1}})));
    }
  }
  return success();
}

Status TensorRtExecution::set_shape(const Shard& shard, void* context, const char* name, const Shape& shape) const {
  Dims dims{static_cast<int32_t>(shape.size()), {}};
  std::copy(shape.begin(), shape.end(), dims.extents);
  if (call<bool>(context, plans_.interface().set_input_shape, name, static_cast<const Dims*>(&dims))) return success();
  return plans_.failure("take " + std::string(name) + " of shape " + to_string(shape) + " in " + shard.plan);
}

Status TensorRtExecution::set_tokens(Profile profile, int64_t tokens) {
  for (size_t i = 0; i < contexts_.size(); ++i) {
    const Shard& shard = plans_.shards()[i];
    for (const TensorSpec& spec : shard.inputs) {
      if (!depends_on_tokens(spec)) continue;
      SALA_RETURN_IF_ERROR(set_shape(shard, contexts_[i].by_profile[static_cast<size_t>(profile)].get(),
                                     spec.name.c_str(), spec.bound({{"batch", 1}, {"tokens", tokens}})));
    }
  }
  return success();
}

Status TensorRtExecution::warm_up() {
  // Token 0 at position 0 of an empty context: the staged inputs are zeros.
  SALA_RETURN_IF_ERROR(enqueue(Profile::kDecode, 1));
  SALA_RETURN_IF_ERROR(synchronize());
  for (const CacheBinding& cache : caches_) {
    SALA_RETURN_IF_ERROR(plans_.memory().set_zero(cache.data, elements_of(cache.shape) * sala::bytes_of(cache.dtype)));
  }
  return success();
}

Status TensorRtExecution::capture_decode() {
  constexpr const char* kWithout = "; load with decode_graph = false (sala-run --no-decode-graph) to run without";
  const Interface& interface = plans_.interface();
  for (size_t i = 0; interface.is_stream_capturable != kAbsent && i < contexts_.size(); ++i) {
    void* context = contexts_[i].by_profile[static_cast<size_t>(Profile::kDecode)].get();
    if (!call<bool>(context, interface.is_stream_capturable, static_cast<void*>(stream_))) {
      return error(ErrorCode::kEngineFailed, "TensorRT cannot capture ", plans_.shards()[i].plan, " as a CUDA graph",
                   kWithout);
    }
  }
  auto graph = DecodeGraph::capture(plans_.driver(), stream_, [this] { return enqueue(Profile::kDecode, 1); });
  if (!graph) return error(ErrorCode::kEngineFailed, graph.error().message, kWithout);
  decode_graph_ = *std::move(graph);
  return success();
}

Status TensorRtExecution::run(Profile profile, std::span<const Tensor> inputs, const Tensor& logits) {
  const Device::Current current(*plans_.device());
  SALA_RETURN_IF_ERROR(stage(inputs));
  const auto ids =
      std::find_if(inputs.begin(), inputs.end(), [](const Tensor& each) { return each.name == "input_ids"; });
  const int64_t tokens = ids == inputs.end() ? 0 : ids->shape[1];
  if (profile == Profile::kDecode && decode_graph_) {
    SALA_RETURN_IF_ERROR(decode_graph_.launch(stream_));
  } else {
    if (profile == Profile::kPrefill && tokens != prefill_tokens_) {
      prefill_tokens_ = 0;  // until all shards have taken the new one
      SALA_RETURN_IF_ERROR(set_tokens(profile, tokens));
      prefill_tokens_ = tokens;
    }
    SALA_RETURN_IF_ERROR(enqueue(profile, tokens));
  }
  SALA_RETURN_IF_ERROR(synchronize());
  std::memcpy(logits.data, buffers_->host(logits.name), static_cast<size_t>(buffers_->capacity(logits.name)));
  return success();
}

Status TensorRtExecution::stage(std::span<const Tensor> inputs) {
  for (const Tensor& input : inputs) {
    const int64_t bytes = elements_of(input.shape) * sala::bytes_of(input.dtype);
    void* to = buffers_->host(input.name);
    if (to == nullptr || bytes > buffers_->capacity(input.name)) {
      return error(ErrorCode::kInvalidArgument, "input ", input.name, " of shape ", to_string(input.shape),
                   " is not one that this engine takes");
    }
    std::memcpy(to, input.data, static_cast<size_t>(bytes));
  }
  return success();
}

Status TensorRtExecution::enqueue(Profile profile, int64_t tokens) const {
  const CudaDriver& driver = plans_.driver();
  for (const TensorSpec& input : plans_.token_inputs()) {
    SALA_RETURN_IF_ERROR(
        driver.check(driver.memcpy_htod_async(address(buffers_->device(input.name)), buffers_->host(input.name),
                                              static_cast<size_t>(bytes_of(input, tokens)), stream_),
                     "copy inputs"));
  }
  for (size_t i = 0; i < contexts_.size(); ++i) {
    void* context = contexts_[i].by_profile[static_cast<size_t>(profile)].get();
    if (!call<bool>(context, plans_.interface().enqueue, static_cast<void*>(stream_))) {
      return plans_.failure("run " + plans_.shards()[i].plan);
    }
  }
  const std::string& logits = plans_.buffer_sizes().logits.name;
  return driver.check(driver.memcpy_dtoh_async(buffers_->host(logits), address(buffers_->device(logits)),
                                               static_cast<size_t>(buffers_->capacity(logits)), stream_),
                      "copy logits");
}

Status TensorRtExecution::synchronize() const {
  return plans_.driver().check(plans_.driver().stream_synchronize(stream_), "finish a step");
}

const CacheBinding* TensorRtExecution::find_cache(std::string_view name) const {
  const auto found = std::find_if(caches_.begin(), caches_.end(), [&](const CacheBinding& cache) {
    return cache.past_name == name || cache.present_name == name;
  });
  return found == caches_.end() ? nullptr : &*found;
}

}  // namespace sala::tensorrt
