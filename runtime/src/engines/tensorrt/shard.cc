#include "engines/tensorrt/shard.h"

#include <algorithm>
#include <utility>

namespace sala::tensorrt {

namespace {

/// The value of TensorRT's DataType.
int32_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0;
    case DType::kFloat16:
      return 1;
    case DType::kBFloat16:
      return 7;
    case DType::kInt32:
      return 3;
    case DType::kInt64:
      return 8;
  }
  return -1;
}

/// A plan's own account of its tensors, beside that of bundle.json.
class Comparison {
 public:
  Comparison(const Interface& interface, void* engine, const Manifest& manifest, const ShardEntry& entry)
      : interface_(interface), engine_(engine), manifest_(manifest), entry_(entry) {}

  Status compare() const {
    const auto profiles = call<int32_t>(engine_, interface_.get_nb_optimization_profiles);
    if (profiles != 2) return damaged("has ", profiles, " profiles, expected prefill and decode");
    const auto tensors = call<int32_t>(engine_, interface_.get_nb_io_tensors);
    if (tensors != static_cast<int32_t>(entry_.inputs.size() + entry_.outputs.size())) {
      return damaged("has ", tensors, " tensors, ", kManifestFile, " says ",
                     entry_.inputs.size() + entry_.outputs.size());
    }
    for (int32_t i = 0; i < tensors; ++i) {
      SALA_RETURN_IF_ERROR(compare(call<const char*>(engine_, interface_.get_io_tensor_name, i)));
    }
    return success();
  }

 private:
  template <class... Parts>
  Error damaged(const Parts&... parts) const {
    return error(ErrorCode::kBundleDamaged, entry_.plan, " ", parts..., ": build the bundle again");
  }

  Status compare(const char* name) const {
    const auto mode = call<int32_t>(engine_, interface_.get_tensor_io_mode, name);
    const auto& specs = mode == kInputTensor ? entry_.inputs : entry_.outputs;
    const auto spec = std::find_if(specs.begin(), specs.end(), [&](const auto& each) { return each.name == name; });
    if (spec == specs.end()) return damaged("has the tensor ", name, ", which ", kManifestFile, " does not have there");
    if (call<int32_t>(engine_, interface_.get_tensor_data_type, name) != data_type(spec->dtype)) {
      return damaged("has ", name, " in another type than ", name_of(spec->dtype), ", which ", kManifestFile, " says");
    }
    const Shape shape = spec->bound({});  // -1 for a symbol, as TensorRT has it
    if (to_shape(call<Dims>(engine_, interface_.get_tensor_shape, name)) != shape) {
      return damaged("has ", name, " in another shape than ", to_string(shape), ", which ", kManifestFile, " says");
    }
    return mode == kInputTensor ? compare_largest(*spec) : success();
  }

  Status compare_largest(const TensorSpec& spec) const {
    for (const auto& [profile, index] : {std::pair("prefill", 0), std::pair("decode", 1)}) {
      SymbolSizes sizes;
      for (const auto& [symbol, range] : manifest_.engine.profiles.at(profile)) sizes[symbol] = range.max;
      const Shape largest = spec.bound(sizes);
      if (to_shape(call<Dims>(engine_, interface_.get_profile_shape, spec.name.c_str(), index, kMaxShape)) != largest) {
        return damaged("takes ", spec.name, " up to another shape in ", profile, " than ", to_string(largest),
                       ", which ", kManifestFile, " says");
      }
    }
    return success();
  }

  static Shape to_shape(const Dims& dims) {
    const int32_t count = std::clamp(dims.count, 0, 8);
    return Shape(dims.extents, dims.extents + count);
  }

  const Interface& interface_;
  void* engine_;
  const Manifest& manifest_;
  const ShardEntry& entry_;
};

}  // namespace

Expected<Shard> adopt_engine(const Interface& interface, Object engine, const Manifest& manifest,
                             const ShardEntry& entry) {
  SALA_RETURN_IF_ERROR(Comparison(interface, engine.get(), manifest, entry).compare());
  int64_t activation_bytes = 0;
  for (const int32_t index : kProfileIndex) {
    activation_bytes =
        std::max(activation_bytes, call<int64_t>(engine.get(), interface.get_device_memory_size_for_profile, index));
  }
  return Shard{entry.plan, entry.inputs, entry.outputs, activation_bytes, std::move(engine)};
}

}  // namespace sala::tensorrt
