#include "onnxruntime/custom_op.h"

#include "common/contract.h"

namespace sala::ort {
namespace {

struct ReleaseStatus {
  const OrtApi& api;
  void operator()(OrtStatus* status) const { api.ReleaseStatus(status); }
};

/// The message of a status, which is released; empty for success.
std::string message_of(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return {};
  const std::unique_ptr<OrtStatus, ReleaseStatus> owned(status, {api});
  return api.GetErrorMessage(status);
}

struct ReleaseInfo {
  const OrtApi& api;
  void operator()(OrtTensorTypeAndShapeInfo* info) const { api.ReleaseTensorTypeAndShapeInfo(info); }
};

using Shape = std::vector<int64_t>;

/// Tensors and threads of one call of a kernel. All tensors of our operators are on the CPU.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext& context, const char* op_type)
      : api_(api), context_(context), op_type_(op_type) {}

  Expected<Shape> input_shape(size_t index) const {
    OrtTensorTypeAndShapeInfo* raw_info = nullptr;
    auto value = input_value(index);
    if (!value) return value.error();
    SALA_RETURN_IF_ERROR(converted(api_.GetTensorTypeAndShape(*value, &raw_info)));
    const std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo> info(raw_info, {api_});
    size_t rank = 0;
    SALA_RETURN_IF_ERROR(converted(api_.GetDimensionsCount(info.get(), &rank)));
    Shape shape(rank);
    SALA_RETURN_IF_ERROR(converted(api_.GetDimensions(info.get(), shape.data(), rank)));
    return shape;
  }

  Expected<const void*> input(size_t index) const {
    auto value = input_value(index);
    if (!value) return value.error();
    // The C interface has no reader of const values at version 21; nothing is written through this pointer.
    void* data = nullptr;
    SALA_RETURN_IF_ERROR(converted(api_.GetTensorMutableData(const_cast<OrtValue*>(*value), &data)));
    return static_cast<const void*>(data);
  }

  /// Memory of an output, which may be that of an input bound to the same buffer.
  Expected<void*> output(size_t index, const Shape& shape) const {
    OrtValue* value = nullptr;
    SALA_RETURN_IF_ERROR(converted(api_.KernelContext_GetOutput(&context_, index, shape.data(), shape.size(), &value)));
    void* data = nullptr;
    SALA_RETURN_IF_ERROR(converted(api_.GetTensorMutableData(value, &data)));
    return data;
  }

  /// ONNX Runtime's own threads. `failure()` tells afterwards whether it refused a loop.
  cpu::ParallelFor parallel() {
    const auto run = [](void* self, cpu::ParallelFor::Task task, size_t count, void* data) {
      auto& call = *static_cast<Call*>(self);
      if (count == 0) return;
      OrtStatus* status = call.api_.KernelContext_ParallelFor(&call.context_, task, count, 0, data);
      if (std::string message = message_of(call.api_, status); !message.empty())
        call.parallel_error_ = std::move(message);
    };
    return {run, this};
  }

  Status failure() const {
    if (parallel_error_.empty()) return success();
    return error(op_type_, ": ", parallel_error_);
  }

 private:
  Expected<const OrtValue*> input_value(size_t index) const {
    const OrtValue* value = nullptr;
    SALA_RETURN_IF_ERROR(converted(api_.KernelContext_GetInput(&context_, index, &value)));
    return value;
  }

  Status converted(OrtStatus* status) const {
    const std::string message = message_of(api_, status);
    if (message.empty()) return success();
    return error(op_type_, ": ", message);
  }

  const OrtApi& api_;
  OrtKernelContext& context_;
  const char* op_type_;
  std::string parallel_error_;
};

}  // namespace

Expected<Kernel> Kernel::create(const cpu::Operator& op, DataType cache_dtype, const OrtApi& api,
                                const OrtKernelInfo& info) {
  const ContractTable& contract = op.contract;
  Kernel kernel{api, op, cache_dtype, std::vector<int64_t>(static_cast<size_t>(contract.num_integer_attributes)),
                std::vector<float>(static_cast<size_t>(contract.num_float_attributes))};
  for (const Attribute& attribute : contract.attributes) {
    const auto index = static_cast<size_t>(attribute.index);
    OrtStatus* status = attribute.is_float
                            ? api.KernelInfoGetAttribute_float(&info, attribute.name, &kernel.floats[index])
                            : api.KernelInfoGetAttribute_int64(&info, attribute.name, &kernel.integers[index]);
    if (const std::string message = message_of(api, status); !message.empty()) {
      return error(contract.type, attribute.is_float ? ": float" : ": integer", " attribute ", attribute.name,
                   " cannot be read: ", message);
    }
  }
  return kernel;
}

Status Kernel::run(OrtKernelContext& context) const {
  const ContractTable& contract = op.contract;
  Call call(api, context, contract.type);
  auto names = bind_attributes(contract, integers);
  if (!names) return names.error();
  std::vector<const void*> inputs;
  for (const TensorRule& rule : contract.inputs) {
    const auto shape = call.input_shape(inputs.size());
    if (!shape) return shape.error();
    SALA_RETURN_IF_ERROR(bind_shape(contract, rule, *shape, *names));
    const auto data = call.input(inputs.size());
    if (!data) return data.error();
    inputs.push_back(*data);
  }
  SALA_RETURN_IF_ERROR(check_conditions(contract, contract.conditions, *names));
  std::vector<void*> outputs;
  for (const TensorRule& rule : contract.outputs) {
    const auto data = call.output(outputs.size(), shape_of(rule, *names));
    if (!data) return data.error();
    outputs.push_back(*data);
  }
  SALA_RETURN_IF_ERROR(op.run({*names, floats, cache_dtype, inputs, outputs}, call.parallel(), simd_level()));
  return call.failure();
}

}  // namespace sala::ort
