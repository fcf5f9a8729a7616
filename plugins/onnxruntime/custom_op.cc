#include "onnxruntime/custom_op.h"

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

std::string printed(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

struct ReleaseInfo {
  const OrtApi& api;
  void operator()(OrtTensorTypeAndShapeInfo* info) const { api.ReleaseTensorTypeAndShapeInfo(info); }
};

}  // namespace

Status Attributes::read(const char* name, int64_t& value) const {
  const std::string message = message_of(api_, api_.KernelInfoGetAttribute_int64(&info_, name, &value));
  if (message.empty()) return success();
  return error(op_type_, ": integer attribute ", name, " cannot be read: ", message);
}

Status Attributes::read(const char* name, float& value) const {
  const std::string message = message_of(api_, api_.KernelInfoGetAttribute_float(&info_, name, &value));
  if (message.empty()) return success();
  return error(op_type_, ": float attribute ", name, " cannot be read: ", message);
}

Status Call::converted(OrtStatus* status) const {
  const std::string message = message_of(api_, status);
  if (message.empty()) return success();
  return error(op_type_, ": ", message);
}

Expected<Shape> Call::input_shape(size_t index) const {
  const OrtValue* value = nullptr;
  SALA_RETURN_IF_ERROR(converted(api_.KernelContext_GetInput(&context_, index, &value)));
  OrtTensorTypeAndShapeInfo* raw_info = nullptr;
  SALA_RETURN_IF_ERROR(converted(api_.GetTensorTypeAndShape(value, &raw_info)));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo> info(raw_info, {api_});
  size_t rank = 0;
  SALA_RETURN_IF_ERROR(converted(api_.GetDimensionsCount(info.get(), &rank)));
  Shape shape(rank);
  SALA_RETURN_IF_ERROR(converted(api_.GetDimensions(info.get(), shape.data(), rank)));
  return shape;
}

Expected<const void*> Call::checked_input(size_t index, const char* name, const Shape& expected) const {
  auto shape = input_shape(index);
  if (!shape) return shape.error();
  if (*shape != expected) {
    return error(op_type_, ": ", name, " has shape ", printed(*shape), ", expected ", printed(expected));
  }
  const OrtValue* value = nullptr;
  SALA_RETURN_IF_ERROR(converted(api_.KernelContext_GetInput(&context_, index, &value)));
  // The C interface has no reader of const values at version 21; nothing is written through this pointer.
  void* data = nullptr;
  SALA_RETURN_IF_ERROR(converted(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data)));
  return static_cast<const void*>(data);
}

Status Call::output(size_t index, const Shape& shape, float*& data) const {
  OrtValue* value = nullptr;
  SALA_RETURN_IF_ERROR(converted(api_.KernelContext_GetOutput(&context_, index, shape.data(), shape.size(), &value)));
  void* memory = nullptr;
  SALA_RETURN_IF_ERROR(converted(api_.GetTensorMutableData(value, &memory)));
  data = static_cast<float*>(memory);
  return success();
}

cpu::ParallelFor Call::parallel() {
  const auto run = [](void* self, cpu::ParallelFor::Task task, size_t count, void* data) {
    auto& call = *static_cast<Call*>(self);
    if (count == 0) return;
    OrtStatus* status = call.api_.KernelContext_ParallelFor(&call.context_, task, count, 0, data);
    if (std::string message = message_of(call.api_, status); !message.empty())
      call.parallel_error_ = std::move(message);
  };
  return {run, this};
}

Status Call::failure() const {
  if (parallel_error_.empty()) return success();
  return error(op_type_, ": ", parallel_error_);
}

}  // namespace sala::ort
