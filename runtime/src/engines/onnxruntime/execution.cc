#include "engines/onnxruntime/execution.h"

#include <string>
#include <utility>

#include "sala/step_names.h"

namespace sala {

namespace {

ONNXTensorElementDataType element_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::kBFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DType::kInt32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DType::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::kFloat8E4M3FN:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;
    case DType::kInt8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case DType::kUInt8:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case DType::kFloat4E2M1FN:  // of a newer interface than this one
      break;
  }
  return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

}  // namespace

Expected<std::unique_ptr<Execution>> OnnxRuntimeExecution::create(OnnxRuntimeLibrary library, OrtSession& session,
                                                                  const Weights& weights,
                                                                  std::span<const CacheBinding> caches) {
  std::unique_ptr<OnnxRuntimeExecution> execution(new OnnxRuntimeExecution(library, session, weights));
  SALA_RETURN_IF_ERROR(execution->create_binding());
  for (const Weight& weight : weights.all()) {
    // ONNX Runtime takes no pointer to const, and does not write to inputs.
    void* const data = const_cast<void*>(weight.data);
    SALA_RETURN_IF_ERROR(execution->bind_input({weight.spec.name, weight.spec.dtype, weight.shape, data}));
  }
  for (const CacheBinding& cache : caches) {
    SALA_RETURN_IF_ERROR(execution->bind_input({cache.past_name, cache.dtype, cache.shape, cache.data}));
    SALA_RETURN_IF_ERROR(execution->bind_output({cache.present_name, cache.dtype, cache.shape, cache.data}));
  }
  return std::unique_ptr<Execution>(std::move(execution));
}

Status OnnxRuntimeExecution::create_binding() {
  const OrtApi& api = library_.api();
  OrtMemoryInfo* memory_info = nullptr;
  SALA_RETURN_IF_ERROR(library_.check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory_info),
                                      "describe host memory"));
  memory_info_.reset(memory_info);
  OrtIoBinding* binding = nullptr;
  SALA_RETURN_IF_ERROR(library_.check(api.CreateIoBinding(&session_, &binding), "make a binding"));
  binding_.reset(binding);
  return success();
}

Status OnnxRuntimeExecution::run(Profile, const StepInputs& step, std::span<float> logits) {
  for (const Tensor& input : step.tensors()) SALA_RETURN_IF_ERROR(bind_input(input));
  const auto rows = static_cast<int64_t>(step.logit_rows.size());
  const Shape shape{rows, static_cast<int64_t>(logits.size()) / rows};
  SALA_RETURN_IF_ERROR(bind_output({step_names::kLogits, DType::kFloat32, shape, logits.data()}));
  SALA_RETURN_IF_ERROR(library_.check(library_.api().RunWithBinding(&session_, nullptr, binding_.get()), "run a step"));
  // Where a file has lost its end meanwhile, the step has computed with zeros.
  return weights_.check();
}

Status OnnxRuntimeExecution::bind_input(const Tensor& tensor) {
  const auto bound = value(tensor);
  if (!bound) return bound.error();
  return library_.check(library_.api().BindInput(binding_.get(), std::string(tensor.name).c_str(), bound->get()),
                        "bind an input");
}

Status OnnxRuntimeExecution::bind_output(const Tensor& tensor) {
  const auto bound = value(tensor);
  if (!bound) return bound.error();
  return library_.check(library_.api().BindOutput(binding_.get(), std::string(tensor.name).c_str(), bound->get()),
                        "bind an output");
}

Expected<OrtPtr<OrtValue>> OnnxRuntimeExecution::value(const Tensor& tensor) const {
  const OrtApi& api = library_.api();
  OrtValue* created = nullptr;
  const size_t bytes = static_cast<size_t>(bytes_of(tensor.dtype, elements_of(tensor.shape)));
  SALA_RETURN_IF_ERROR(
      library_.check(api.CreateTensorWithDataAsOrtValue(memory_info_.get(), tensor.data, bytes, tensor.shape.data(),
                                                        tensor.shape.size(), element_type(tensor.dtype), &created),
                     "wrap a tensor"));
  return OrtPtr<OrtValue>(created, api.ReleaseValue);
}

}  // namespace sala
