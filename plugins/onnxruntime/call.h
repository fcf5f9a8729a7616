// One call of a custom operator through ONNX Runtime's C interface: tensors, threads and errors.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common/result.h"
#include "cpu/parallel.h"
#include "engines/onnxruntime/interface.h"

namespace sala::ort {

using Shape = std::vector<int64_t>;

/// The message of a status, which is released; empty for success.
std::string message_of(const OrtApi& api, OrtStatus* status);

/// The same as a status of ours; `op_type` begins the message of a failure.
Status checked(const OrtApi& api, const char* op_type, OrtStatus* status);

/// An input, which is on the CPU as all tensors of our operators are.
struct Input {
  const void* data;
  ONNXTensorElementDataType type;
  Shape shape;
};

/// Tensors and threads of one call of a kernel.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext& context, const char* op_type)
      : api_(api), context_(context), op_type_(op_type) {}

  Expected<size_t> input_count() const;
  Expected<Input> input(size_t index) const;
  /// Memory of an output, which may be that of an input bound to the same buffer.
  Expected<void*> output(size_t index, const Shape& shape) const;

  /// ONNX Runtime's own threads. `failure()` tells afterwards whether it refused a loop.
  cpu::ParallelFor parallel();
  Status failure() const { return failure_; }

 private:
  Status checked(OrtStatus* status) const { return ort::checked(api_, op_type_, status); }

  const OrtApi& api_;
  OrtKernelContext& context_;
  const char* op_type_;
  Status failure_ = success();
};

/// Fills in the callbacks that are the same for every operator of ours: it is of the CPU, all its tensors are required,
/// there is one version of it.
void set_common_callbacks(OrtCustomOp& op);

}  // namespace sala::ort
