#include "onnxruntime/linear_op.h"

#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "linear/linear_cpu.h"
#include "onnxruntime/call.h"
#include "onnxruntime/custom_op.h"

namespace sala::ort {
namespace {

using linear::ScaleType;
using linear::StoredWeight;
using linear::WeightKind;

constexpr const char* kType = "Linear";

/// A way to store weights: the elements of its codes, and of its scales.
struct Storage {
  const char* name;
  WeightKind kind;
  ONNXTensorElementDataType codes;  // undefined: any type, the bytes decide
  ScaleType scales;                 // kFloat32: bfloat16 and float16 as well
};

constexpr Storage kStorages[] = {
    {"float32", WeightKind::kFloat32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ScaleType::kNone},
    {"bfloat16", WeightKind::kBFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, ScaleType::kNone},
    {"float16", WeightKind::kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ScaleType::kNone},
    {"float8_e4m3fn", WeightKind::kFloat8, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN, ScaleType::kFloat32},
    {"mxfp8", WeightKind::kMxfp8, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN, ScaleType::kE8m0},
    {"int8", WeightKind::kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, ScaleType::kFloat32},
    {"int4", WeightKind::kInt4, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ScaleType::kFloat32},
    {"nvfp4", WeightKind::kNvfp4, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ScaleType::kFloat8},
};

/// Bytes of an element; 0 for types that no weight is stored in.
int64_t bytes_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN:
      return 1;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return 8;
    default:
      return 0;
  }
}

std::string printed(const Shape& shape) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < shape.size(); ++i) text << (i == 0 ? "" : ", ") << shape[i];
  text << ']';
  return text.str();
}

int64_t elements_of(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, [](int64_t a, int64_t b) { return a * b; });
}

Expected<std::string> string_attribute(const OrtApi& api, const OrtKernelInfo& info, const char* name) {
  size_t size = 0;
  SALA_RETURN_IF_ERROR(checked(api, kType, api.KernelInfoGetAttribute_string(&info, name, nullptr, &size)));
  std::string value(size, '\0');
  SALA_RETURN_IF_ERROR(checked(api, kType, api.KernelInfoGetAttribute_string(&info, name, value.data(), &size)));
  value.resize(value.empty() ? 0 : value.find('\0'));
  return value;
}

/// True for the second of two names, and false for the first.
Expected<bool> choice(const OrtApi& api, const OrtKernelInfo& info, const char* name, std::string_view first,
                      std::string_view second) {
  const auto value = string_attribute(api, info, name);
  if (!value) return value.error();
  if (*value != first && *value != second) {
    return error("Linear: ", name, " is \"", *value, "\"; take \"", first, "\" or \"", second, "\"");
  }
  return *value == second;
}

/// The type of scales, which must be that of their storage.
Expected<ScaleType> scale_type(const Storage& storage, const Input& scales) {
  const auto found = [&] {
    switch (scales.type) {
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
        return ScaleType::kFloat32;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
        return ScaleType::kBFloat16;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        return ScaleType::kFloat16;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN:
        return ScaleType::kFloat8;
      case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
        return ScaleType::kE8m0;
      default:
        return ScaleType::kNone;
    }
  }();
  const bool is_wide = found == ScaleType::kBFloat16 || found == ScaleType::kFloat16;
  if ((is_wide ? ScaleType::kFloat32 : found) == storage.scales) return found;
  return error("Linear: scales of ", storage.name, " weights have the element type ", static_cast<int>(scales.type),
               "; take ",
               storage.scales == ScaleType::kFloat8 ? "float8_e4m3fn"
               : storage.scales == ScaleType::kE8m0 ? "uint8"
                                                    : "float32, bfloat16 or float16");
}

/// Adds the scales to a weight: one number, one for each row, or a matrix of blocks.
Status add_scales(const Storage& storage, const Input& scales, int64_t columns, StoredWeight& weight) {
  const auto type = scale_type(storage, scales);
  if (!type) return type.error();
  const bool is_single = elements_of(scales.shape) == 1;
  if (!is_single && scales.shape.size() != 1 && scales.shape.size() != 2) {
    return error("Linear: scales ", printed(scales.shape), " are no number, vector or matrix");
  }
  weight.scales = scales.data;
  weight.scale_type = *type;
  weight.row_blocks = is_single ? 1 : scales.shape[0];
  weight.column_blocks = is_single || scales.shape.size() == 1 ? 1 : scales.shape[1];
  const bool divides = weight.row_blocks > 0 && weight.column_blocks > 0 && weight.rows % weight.row_blocks == 0 &&
                       columns % weight.column_blocks == 0;
  if (!divides) {
    return error("Linear: scales ", printed(scales.shape), " do not divide weights ", printed({weight.rows, columns}));
  }
  const bool is_block = weight.row_blocks == weight.rows && weight.column_blocks * linear::kMxBlock == columns;
  if (storage.kind != WeightKind::kMxfp8 || is_block) return success();
  return error("Linear: scales ", printed(scales.shape), " of mxfp8 weights ", printed({weight.rows, columns}),
               " are not one for each ", linear::kMxBlock, " columns of a row");
}

/// A node of the graph.
struct LinearKernel {
  static Expected<LinearKernel> create(const OrtApi& api, const OrtKernelInfo& info);

  Status run(OrtKernelContext& context) const;
  Expected<StoredWeight> weight(const Call& call, size_t index, int64_t columns) const;

  const OrtApi& api;
  const Storage& storage;
  bool exact;
  bool silu_mul;
  float global_scale;
};

Expected<LinearKernel> LinearKernel::create(const OrtApi& api, const OrtKernelInfo& info) {
  const auto weights = string_attribute(api, info, "weights");
  if (!weights) return weights.error();
  const auto fast = choice(api, info, "math", "exact", "fast");
  if (!fast) return fast.error();
  const auto silu_mul = choice(api, info, "epilogue", "none", "silu_mul");
  if (!silu_mul) return silu_mul.error();
  float global_scale = 1.0f;
  SALA_RETURN_IF_ERROR(checked(api, kType, api.KernelInfoGetAttribute_float(&info, "global_scale", &global_scale)));
  std::string known;
  for (const Storage& storage : kStorages) {
    if (*weights == storage.name) return LinearKernel{api, storage, !*fast, *silu_mul, global_scale};
    known += std::string(known.empty() ? "" : ", ") + storage.name;
  }
  return error("Linear: weights is \"", *weights, "\"; take one of ", known);
}

Expected<StoredWeight> LinearKernel::weight(const Call& call, size_t index, int64_t columns) const {
  const auto codes = call.input(index);
  if (!codes) return codes.error();
  const bool is_typed = storage.codes != ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  if (is_typed ? codes->type != storage.codes : bytes_of(codes->type) == 0) {
    return error("Linear: input ", index, " has the element type ", static_cast<int>(codes->type),
                 ", which is not that of ", storage.name, " weights");
  }
  const int64_t bytes = linear::row_bytes(storage.kind, columns);
  const bool is_matrix = codes->shape.size() == 2 && codes->shape[1] * bytes_of(codes->type) == bytes &&
                         linear::columns_of(storage.kind, bytes) == columns;
  if (!is_matrix) {
    return error("Linear: input ", index, " ", printed(codes->shape), " is no matrix of ", storage.name,
                 " weights for x with ", columns, " columns");
  }
  StoredWeight weight{codes->shape[0], codes->data, nullptr, ScaleType::kNone, 1, 1};
  if (storage.scales != ScaleType::kNone) {
    const auto scales = call.input(index + 1);
    if (!scales) return scales.error();
    SALA_RETURN_IF_ERROR(add_scales(storage, *scales, columns, weight));
  }
  return weight;
}

Status LinearKernel::run(OrtKernelContext& context) const {
  Call call(api, context, kType);
  const auto inputs = call.input_count();
  if (!inputs) return inputs.error();
  const auto x = call.input(0);
  if (!x) return x.error();
  if (x->shape.empty() || x->shape.back() == 0) return error("Linear: x ", printed(x->shape), " has no columns");
  const int64_t columns = x->shape.back();
  const size_t inputs_of_weight = storage.scales != ScaleType::kNone ? 2 : 1;
  const size_t count = (*inputs - 1) / inputs_of_weight;
  if (count * inputs_of_weight + 1 != *inputs) return error("Linear: the last of the weights has no scales");
  if (silu_mul && count % 2 != 0) return error("Linear: silu_mul takes an even number of weights, not ", count);
  std::vector<StoredWeight> weights;
  int64_t width = 0, first_half = 0;
  for (size_t i = 0; i < count; ++i) {
    auto stored = weight(call, 1 + i * inputs_of_weight, columns);
    if (!stored) return stored.error();
    width += stored->rows;
    if (i < count / 2) first_half += stored->rows;
    if (stored->rows > 0) weights.push_back(*stored);
  }
  if (silu_mul && 2 * first_half != width) {
    return error("Linear: silu_mul takes two halves of equal width, not ", first_half, " and ", width - first_half);
  }
  Shape shape = x->shape;
  shape.back() = silu_mul ? first_half : width;
  const auto y = call.output(0, shape);
  if (!y) return y.error();
  SALA_RETURN_IF_ERROR(
      linear::linear_cpu({static_cast<const float*>(x->data), elements_of(x->shape) / columns, columns, weights,
                          storage.kind, global_scale, exact, silu_mul, static_cast<float*>(*y)},
                         call.parallel(), simd_level()));
  return call.failure();
}

struct LinearOp : OrtCustomOp {
  LinearOp();

  static OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, kType, [&]() -> Status {
      auto created = LinearKernel::create(*api, *info);
      if (!created) return created.error();
      *kernel = std::make_unique<LinearKernel>(*std::move(created)).release();
      return success();
    });
  }

  static OrtStatus* compute(void* opaque, OrtKernelContext* context) {
    const auto& kernel = *static_cast<const LinearKernel*>(opaque);
    return guarded(kernel.api, kType, [&] { return kernel.run(*context); });
  }
};

LinearOp::LinearOp() : OrtCustomOp{} {
  set_common_callbacks(*this);
  GetName = [](const OrtCustomOp*) { return kType; };
  GetInputTypeCount = [](const OrtCustomOp*) { return size_t{2}; };
  // The second stands for all that follow, whatever their types.
  GetInputType = [](const OrtCustomOp*, size_t index) {
    return index == 0 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  };
  GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
    return index == 0 ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_VARIADIC;
  };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = [](void* kernel) { delete static_cast<LinearKernel*>(kernel); };
}

}  // namespace

const OrtCustomOp& linear_op() {
  static const LinearOp op;
  return op;
}

}  // namespace sala::ort
