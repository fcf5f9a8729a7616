#include "engines/tensorrt/loaded_plan.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "cuda/cache_memory.h"
#include "engines/tensorrt/bundle_device.h"
#include "engines/tensorrt/comparison.h"
#include "engines/tensorrt/plan.h"
#include "engines/tensorrt/weight_upload.h"
#include "sala/step_names.h"
#include "weights/weight_input.h"

namespace sala::tensorrt {

namespace {

/// The file that is given, or that beside the bundle if it can be written; empty if not.
std::filesystem::path runtime_cache_file(const std::filesystem::path& bundle, const std::filesystem::path& given) {
  if (!given.empty()) return given;
  std::error_code failed;
  std::filesystem::path whole = std::filesystem::weakly_canonical(bundle, failed);
  if (failed) return {};
  if (!whole.has_filename()) whole = whole.parent_path();  // "out.sala/"
  if (access(whole.parent_path().c_str(), W_OK) != 0) return {};
  whole += ".runtime-cache";
  // That of another user may be one that this process may not write.
  const bool is_writable = access(whole.c_str(), W_OK) == 0 || errno == ENOENT;
  return is_writable ? whole : std::filesystem::path();
}

/// In the largest step of a profile; -1 beyond int64.
int64_t bytes_in(std::string_view profile, const TensorSpec& spec, const EngineEntry& engine) {
  SymbolSizes sizes;
  for (const auto& [symbol, range] : engine.profiles.find(profile)->second) sizes[symbol] = range.max;
  return bytes_of(spec.dtype, elements_of(spec.bound(sizes)));
}

/// In the larger of both profiles; -1 beyond int64.
int64_t most_bytes(const TensorSpec& spec, const EngineEntry& engine) {
  const int64_t prefill = bytes_in(step_names::kPrefill, spec, engine);
  const int64_t decode = bytes_in(step_names::kDecode, spec, engine);
  return std::min(prefill, decode) < 0 ? -1 : std::max(prefill, decode);
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

Expected<std::unique_ptr<const LoadedPlan>> LoadedPlan::load(const Bundle& bundle, const LoadOptions& options,
                                                             const WeightSource& source) {
  const Manifest& manifest = bundle.manifest;
  std::unique_ptr<LoadedPlan> plan(new LoadedPlan());
  plan->options_ = options.tensorrt;
  plan->name_ = manifest.engine.plan;
  plan->title_ = title(manifest.engine);
  auto device = open_device(manifest);
  if (!device) return device.error();
  plan->device_ = *std::move(device);
  const auto library = Library::load(manifest.engine, plan->options_.library);
  if (!library) return library.error();
  // From here on this machine can run the engine: what is wrong now is not hidden by another runtime.
  SALA_RETURN_IF_ERROR(check_inputs(manifest.engine.weights, source));
  const cuda::Device::Current current(*plan->device_);
  SALA_RETURN_IF_ERROR(plan->start(*library));
  SALA_RETURN_IF_ERROR(plan->deserialise(bundle));
  SALA_RETURN_IF_ERROR(plan->measure(manifest));
  auto weights =
      upload_weights(*plan->device_, *plan->memory_, *plan->pinned_, manifest.engine.weights, source, options);
  if (!weights) return weights.error();
  plan->weights_ = *std::move(weights);
  plan->open_runtime_cache(bundle.path);
  return std::unique_ptr<const LoadedPlan>(std::move(plan));
}

Status LoadedPlan::start(const Library& library) {
  interface_ = &library.interface();
  memory_ = std::make_unique<cuda::DeviceMemory>(device_, options_.allocator);
  auto cache_memory = cuda::cache_memory(device_, options_.allocator);
  if (!cache_memory) return cache_memory.error();
  cache_memory_ = *std::move(cache_memory);
  pinned_ = std::make_unique<cuda::PinnedMemory>(device_);
  log_ = std::make_unique<Log>(interface_->versioned_logger);
  runtime_ = library.create_runtime(*log_);
  if (!runtime_) return failure("start");
  if (options_.allocator) {
    allocator_ = std::make_unique<Allocator>(*memory_);
    interface_->set_gpu_allocator(runtime_.get(), allocator_.get());
  }
  return success();
}

Status LoadedPlan::deserialise(const Bundle& bundle) {
  const Manifest& manifest = bundle.manifest;
  const auto plan = read_plan(bundle);
  if (!plan) return plan.error();
  // Before anything of it is on the GPU.
  SALA_RETURN_IF_ERROR(check_room(manifest, plan->bytes()));
  interface_->set_engine_host_code_allowed(runtime_.get(), true);  // the plugin library in the plan
  engine_.reset(interface_->deserialize_cuda_engine(runtime_.get(), plan->data(), static_cast<size_t>(plan->bytes())));
  if (!engine_) return failure("load " + name_);
  return compare_with_manifest(*interface_, engine_.get(), manifest);
}

/// A plan takes little more on the GPU than its file has bytes.
Status LoadedPlan::check_room(const Manifest& manifest, int64_t plan_bytes) const {
  if (memory_->is_of_caller()) return success();
  const int64_t weight_bytes = WeightLayout(manifest.engine.weights).bytes();
  const int64_t needed = weight_bytes + plan_bytes;
  const auto free = device_->free_bytes();
  if (!free) return free.error();
  if (*free >= needed) return success();
  return error(ErrorCode::kOutOfMemory, "the weights take ", weight_bytes, " bytes of device memory and the engine ",
               plan_bytes, ", ", *free, " are free, ", needed - *free,
               " too few: end other programs on the GPU, or build with a quantised --precision or fewer --layers");
}

Status LoadedPlan::measure(const Manifest& manifest) {
  for (const TensorSpec& input : manifest.inputs) {
    if (!input.name.starts_with(step_names::kPast)) token_inputs_.push_back(input);
  }
  logits_ = *std::ranges::find(manifest.outputs, step_names::kLogits, &TensorSpec::name);
  for (const TensorSpec& spec : token_inputs_) {
    buffer_sizes_.inputs.push_back({spec.name, most_bytes(spec, manifest.engine)});
  }
  buffer_sizes_.logits = {logits_.name, bytes_in(step_names::kDecode, logits_, manifest.engine)};
  const auto is_beyond = [](const StepBufferSizes::Part& part) { return part.bytes < 0; };
  if (most_bytes(logits_, manifest.engine) < 0 || std::ranges::any_of(buffer_sizes_.inputs, is_beyond)) {
    return error(ErrorCode::kBundleDamaged, name_, " takes steps that exceed memory: build the bundle again");
  }
  for (const int32_t index : kProfileIndex) {
    buffer_sizes_.activation_bytes =
        std::max(buffer_sizes_.activation_bytes, interface_->get_device_memory_size_for_profile(engine_.get(), index));
  }
  return success();
}

void LoadedPlan::open_runtime_cache(const std::filesystem::path& bundle) {
  if (!interface_->has_runtime_cache()) return;
  if (auto file = runtime_cache_file(bundle, options_.runtime_cache); !file.empty()) {
    runtime_cache_ = std::make_unique<RuntimeCache>(*interface_, std::move(file));
  }
}

Error LoadedPlan::failure(const std::string& what) const {
  const std::string reason = log_->take_errors();
  if (contains(reason, "driver version is insufficient") ||
      contains(reason, "not supported in the installed CUDA driver")) {
    return error(ErrorCode::kDeviceUnsuitable, "the NVIDIA driver is too old for ", title_, " (", reason,
                 "): install driver 580 or later, which supports CUDA 13, or choose runtime onnxruntime for the CPU");
  }
  if (contains(reason, "out of memory") || contains(reason, "OutOfMemory")) {
    const auto free = device_->free_bytes();
    return error(ErrorCode::kOutOfMemory, title_, " could not ", what, ": ", reason, " (",
                 free ? std::to_string(*free) : "unknown",
                 " bytes of device memory are free: end other programs on the "
                 "GPU, or choose a smaller max_context)");
  }
  return error(ErrorCode::kEngineFailed, title_, " could not ", what, ": ", reason);
}

}  // namespace sala::tensorrt
