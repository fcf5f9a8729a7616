#include "engines/tensorrt/plans.h"

#include <unistd.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "engines/tensorrt/plan.h"

namespace sala::tensorrt {

namespace {

constexpr std::string_view kStreamPrefix = "hidden_states.";
constexpr std::string_view kPastPrefix = "past_key_values.";

Status check_profiles(const std::filesystem::path& bundle, const Manifest& manifest) {
  for (const char* profile : {"prefill", "decode"}) {
    const auto found = manifest.engine.profiles.find(profile);
    if (found == manifest.engine.profiles.end() || !found->second.contains("tokens")) {
      return error(ErrorCode::kBundleDamaged, (bundle / kManifestFile).string(), ": engine.profiles has no usable ",
                   profile, " (build the bundle again)");
    }
  }
  return success();
}

/// The file that is given, or that beside the bundle if it can be written; empty if not.
std::filesystem::path runtime_cache_file(const std::filesystem::path& bundle, const std::filesystem::path& given) {
  if (!given.empty()) return given;
  std::error_code failed;
  std::filesystem::path whole = std::filesystem::weakly_canonical(bundle, failed);
  if (failed) return {};
  if (!whole.has_filename()) whole = whole.parent_path();  // "out.sala/"
  if (access(whole.parent_path().c_str(), W_OK) != 0) return {};
  return whole.string() + ".runtime-cache";
}

int64_t most_bytes(const TensorSpec& spec, const ProfileRanges& ranges) {
  SymbolSizes sizes;
  for (const auto& [symbol, range] : ranges) sizes[symbol] = range.max;
  sizes["batch"] = 1;
  return elements_of(spec.bound(sizes)) * bytes_of(spec.dtype);
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

}  // namespace

Expected<std::unique_ptr<const Plans>> Plans::load(const std::filesystem::path& bundle, const Manifest& manifest,
                                                   const TensorRtOptions& options) {
  std::unique_ptr<Plans> plans(new Plans());
  plans->options_ = options;
  auto device = Device::find(manifest);
  if (!device) return device.error();
  plans->device_ = *std::move(device);
  const auto library = Library::load(manifest.engine, options.library);
  if (!library) return library.error();
  // From here on this machine can run the engine: what is wrong now is not hidden by another runtime.
  SALA_RETURN_IF_ERROR(check_profiles(bundle, manifest));
  plans->title_ = title(manifest.engine);
  plans->interface_ = &library->interface();
  plans->memory_ = std::make_unique<DeviceMemory>(plans->device_, options.allocator);
  plans->pinned_ = std::make_unique<PinnedMemory>(plans->device_);
  plans->log_ = std::make_unique<Log>(plans->interface_->versioned_logger);
  const Device::Current current(*plans->device_);
  plans->runtime_ = library->create_runtime(*plans->log_);
  if (!plans->runtime_) return plans->failure("start");
  if (options.allocator) {
    plans->allocator_ = std::make_unique<Allocator>(*plans->memory_);
    call<void>(plans->runtime_.get(), plans->interface_->set_gpu_allocator,
               static_cast<void*>(plans->allocator_.get()));
  }
  SALA_RETURN_IF_ERROR(plans->deserialise(bundle, manifest));
  plans->measure(manifest);
  if (plans->interface_->has_runtime_cache()) {
    if (auto file = runtime_cache_file(bundle, options.runtime_cache); !file.empty()) {
      plans->runtime_cache_ = std::make_unique<RuntimeCache>(*plans->interface_, std::move(file));
    }
  }
  return std::unique_ptr<const Plans>(std::move(plans));
}

/// The first shard brings the plugins, into the registry of the one IRuntime that all are given.
Status Plans::deserialise(const std::filesystem::path& bundle, const Manifest& manifest) {
  SALA_RETURN_IF_ERROR(check_room(manifest));
  for (const ShardEntry& entry : manifest.engine.shards) {
    const auto plan = read_plan(bundle, manifest, entry);
    if (!plan) return plan.error();
    if (entry.plugin_library_serialized) {
      call<void>(runtime_.get(), interface_->set_engine_host_code_allowed, true);
    }
    Object engine(call<void*>(runtime_.get(), interface_->deserialize_cuda_engine,
                              static_cast<const void*>(plan->data()), static_cast<size_t>(plan->bytes())));
    if (!engine) return failure("load " + entry.plan);
    auto shard = adopt_engine(*interface_, std::move(engine), manifest, entry);
    if (!shard) return shard.error();
    shards_.push_back(*std::move(shard));
  }
  return success();
}

/// A plan is little more than its weights, which all go to the GPU.
Status Plans::check_room(const Manifest& manifest) const {
  if (memory_->is_of_caller()) return success();
  int64_t needed = 0;
  for (const ShardEntry& entry : manifest.engine.shards) {
    const FileEntry* file = manifest.file(entry.plan);
    needed += file == nullptr ? 0 : file->bytes;  // reading it says what is wrong
  }
  const auto free = device_->free_bytes();
  if (!free) return free.error();
  if (*free >= needed) return success();
  return error(ErrorCode::kOutOfMemory, "the engine's weights take ", needed, " bytes of device memory, ", *free,
               " are free, ", needed - *free,
               " too few: end other programs on the GPU, or build with fewer --layers or "
               "for a larger --gpu");
}

void Plans::measure(const Manifest& manifest) {
  const ProfileRanges& ranges = manifest.engine.profiles.at("prefill");
  for (const TensorSpec& input : manifest.inputs) {
    if (input.name.starts_with(kPastPrefix)) continue;
    token_inputs_.push_back(input);
    buffer_sizes_.inputs.push_back({input.name, most_bytes(input, ranges)});
  }
  for (const TensorSpec& output : manifest.outputs) {
    if (output.name == "logits") buffer_sizes_.logits = {output.name, most_bytes(output, ranges)};
  }
  for (const Shard& shard : shards_) {
    buffer_sizes_.activation_bytes = std::max(buffer_sizes_.activation_bytes, shard.activation_bytes);
    for (const TensorSpec& output : shard.outputs) {
      if (output.name.starts_with(kStreamPrefix)) {
        buffer_sizes_.streams.push_back({output.name, most_bytes(output, ranges)});
      }
    }
  }
}

Error Plans::failure(const std::string& what) const {
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
