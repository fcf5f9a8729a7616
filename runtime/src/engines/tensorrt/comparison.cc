#include "engines/tensorrt/comparison.h"

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "sala/step_names.h"

namespace sala::tensorrt {

namespace {

/// The value of TensorRT's DataType.
int32_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0;
    case DType::kFloat16:
      return 1;
    case DType::kInt8:
      return 2;
    case DType::kInt32:
      return 3;
    case DType::kUInt8:
      return 5;
    case DType::kFloat8E4M3FN:
      return 6;
    case DType::kBFloat16:
      return 7;
    case DType::kInt64:
      return 8;
    case DType::kFloat4E2M1FN:
      return 10;
  }
  return -1;
}

bool is_dynamic(const TensorSpec& spec) {
  return std::any_of(spec.shape.begin(), spec.shape.end(), [](const Extent& each) { return !each.symbol.empty(); });
}

Shape to_shape(const Dims& dims) {
  const int32_t count = std::clamp(dims.count, 0, 8);
  return Shape(dims.extents, dims.extents + count);
}

class Comparison {
 public:
  Comparison(const Interface& interface, void* engine, const Manifest& manifest)
      : interface_(interface), engine_(engine), manifest_(manifest) {
    for (const TensorSpec& input : manifest.inputs) inputs_[input.name] = &input;
    for (const WeightInput& weight : manifest.engine.weights) inputs_[weight.spec.name] = &weight.spec;
    for (const TensorSpec& output : manifest.outputs) outputs_[output.name] = &output;
  }

  Status compare() const {
    const int32_t profiles = interface_.get_nb_optimization_profiles(engine_);
    if (profiles != 2) return damaged("has ", profiles, " profiles, expected prefill and decode");
    const int32_t tensors = interface_.get_nb_io_tensors(engine_);
    // Not the sizes of the maps: a name that is given twice counts twice.
    const size_t expected = manifest_.inputs.size() + manifest_.engine.weights.size() + manifest_.outputs.size();
    if (tensors != static_cast<int64_t>(expected)) {
      return damaged("has ", tensors, " tensors, ", kManifestFile, " says ", expected);
    }
    for (int32_t i = 0; i < tensors; ++i) {
      SALA_RETURN_IF_ERROR(compare(interface_.get_io_tensor_name(engine_, i)));
    }
    return success();
  }

 private:
  using Specs = std::map<std::string_view, const TensorSpec*>;

  template <class... Parts>
  Error damaged(const Parts&... parts) const {
    return error(ErrorCode::kBundleDamaged, manifest_.engine.plan, " ", parts..., ": build the bundle again");
  }

  Status compare(const char* name) const {
    const bool is_input = interface_.get_tensor_io_mode(engine_, name) == kInputTensor;
    const Specs& specs = is_input ? inputs_ : outputs_;
    const auto found = specs.find(name);
    if (found == specs.end()) {
      return damaged("has the tensor ", name, ", which ", kManifestFile, " does not have there");
    }
    const TensorSpec& spec = *found->second;
    if (interface_.get_tensor_data_type(engine_, name) != data_type(spec.dtype)) {
      return damaged("has ", name, " in another type than ", name_of(spec.dtype), ", which ", kManifestFile, " says");
    }
    const Shape shape = spec.bound({});  // -1 for a symbol, as TensorRT has it
    if (to_shape(interface_.get_tensor_shape(engine_, name)) != shape) {
      return damaged("has ", name, " in another shape than ", to_string(shape), ", which ", kManifestFile, " says");
    }
    return is_input && is_dynamic(spec) ? compare_largest(spec) : success();
  }

  Status compare_largest(const TensorSpec& spec) const {
    for (const auto& [profile, index] : {std::pair(step_names::kPrefill, 0), std::pair(step_names::kDecode, 1)}) {
      SymbolSizes sizes;
      for (const auto& [symbol, range] : manifest_.engine.profiles.find(profile)->second) sizes[symbol] = range.max;
      const Shape largest = spec.bound(sizes);
      if (to_shape(interface_.get_profile_shape(engine_, spec.name.c_str(), index, kMaxShape)) != largest) {
        return damaged("takes ", spec.name, " up to another shape in ", profile, " than ", to_string(largest),
                       ", which ", kManifestFile, " says");
      }
    }
    return success();
  }

  const Interface& interface_;
  void* engine_;
  const Manifest& manifest_;
  Specs inputs_;
  Specs outputs_;
};

}  // namespace

Status compare_with_manifest(const Interface& interface, void* engine, const Manifest& manifest) {
  return Comparison(interface, engine, manifest).compare();
}

}  // namespace sala::tensorrt
