#include "onnxruntime/call.h"

#include <memory>

namespace sala::ort {
namespace {

struct ReleaseStatus {
  const OrtApi& api;
  void operator()(OrtStatus* status) const { api.ReleaseStatus(status); }
};

struct ReleaseInfo {
  const OrtApi& api;
  void operator()(OrtTensorTypeAndShapeInfo* info) const { api.ReleaseTensorTypeAndShapeInfo(info); }
};

}  // namespace

std::string message_of(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return {};
  const std::unique_ptr<OrtStatus, ReleaseStatus> owned(status, {api});
  return api.GetErrorMessage(status);
}

Status checked(const OrtApi& api, const char* op_type, OrtStatus* status) {
  const std::string message = message_of(api, status);
  if (message.empty()) return success();
  return error(op_type, ": ", message);
}

Expected<size_t> Call::input_count() const {
  size_t count = 0;
  SALA_RETURN_IF_ERROR(checked(api_.KernelContext_GetInputCount(&context_, &count)));
  return count;
}

Expected<Input> Call::input(size_t index) const {
  const OrtValue* value = nullptr;
  SALA_RETURN_IF_ERROR(checked(api_.KernelContext_GetInput(&context_, index, &value)));
  OrtTensorTypeAndShapeInfo* raw_info = nullptr;
  SALA_RETURN_IF_ERROR(checked(api_.GetTensorTypeAndShape(value, &raw_info)));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo> info(raw_info, {api_});
  Input input{};
  SALA_RETURN_IF_ERROR(checked(api_.GetTensorElementType(info.get(), &input.type)));
  size_t rank = 0;
  SALA_RETURN_IF_ERROR(checked(api_.GetDimensionsCount(info.get(), &rank)));
  input.shape.resize(rank);
  SALA_RETURN_IF_ERROR(checked(api_.GetDimensions(info.get(), input.shape.data(), rank)));
  // The C interface has no reader of const values at version 21; nothing is written through this pointer.
  void* data = nullptr;
  SALA_RETURN_IF_ERROR(checked(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data)));
  input.data = data;
  return input;
}

Expected<void*> Call::output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  SALA_RETURN_IF_ERROR(checked(api_.KernelContext_GetOutput(&context_, index, shape.data(), shape.size(), &value)));
  void* data = nullptr;
  SALA_RETURN_IF_ERROR(checked(api_.GetTensorMutableData(value, &data)));
  return data;
}

cpu::ParallelFor Call::parallel() {
  const auto run = [](void* self, cpu::ParallelFor::Task task, size_t count, void* data) {
    auto& call = *static_cast<Call*>(self);
    if (count == 0) return;
    const Status status = call.checked(call.api_.KernelContext_ParallelFor(&call.context_, task, count, 0, data));
    if (!status) call.failure_ = status;
  };
  return {run, this};
}

void set_common_callbacks(OrtCustomOp& op) {
  op.version = kOrtApiVersion;
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
}

}  // namespace sala::ort
