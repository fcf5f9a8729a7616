// What the adapters of ONNX Runtime custom operators share: attributes, tensors, threads and errors.

#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"
#include "cpu/parallel.h"
#include "cpu/simd_level.h"

namespace sala::ort {

// The C interface grows at its end: version 21 (ONNX Runtime 1.21) is the oldest with all that is used here.
constexpr uint32_t kApiVersion = 21;
static_assert(ORT_API_VERSION >= kApiVersion, "headers of ONNX Runtime 1.21 or later are needed");

using Shape = std::vector<int64_t>;

/// Calls `body`, which returns a Status, and turns a failure or an exception of the standard library into a status of
/// ONNX Runtime; null is success.
template <class Body>
OrtStatus* guarded(const OrtApi& api, const char* op_type, Body&& body) noexcept {
  try {
    const Status status = body();
    return status ? nullptr : api.CreateStatus(ORT_INVALID_ARGUMENT, status.error().message.c_str());
  } catch (const std::exception& failure) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, (std::string(op_type) + ": " + failure.what()).c_str());
  }
}

/// Attributes of a node, while its kernel is created.
class Attributes {
 public:
  Attributes(const OrtApi& api, const OrtKernelInfo& info, const char* op_type)
      : api_(api), info_(info), op_type_(op_type) {}

  /// Fails if the node has no integer, or float, of that name.
  Status read(const char* name, int64_t& value) const;
  Status read(const char* name, float& value) const;

 private:
  const OrtApi& api_;
  const OrtKernelInfo& info_;
  const char* op_type_;
};

/// Tensors and threads of one call of a kernel. All tensors of our operators are on the CPU.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext& context, const char* op_type)
      : api_(api), context_(context), op_type_(op_type) {}

  Expected<Shape> input_shape(size_t index) const;

  /// Data of an input; fails if its shape is not `expected`.
  template <class T>
  Status input(size_t index, const char* name, const Shape& expected, const T*& data) const {
    auto bytes = checked_input(index, name, expected);
    if (!bytes) return bytes.error();
    data = static_cast<const T*>(*bytes);
    return success();
  }

  /// Memory of an output, which may be that of an input bound to the same buffer.
  Status output(size_t index, const Shape& shape, float*& data) const;

  /// ONNX Runtime's own threads. `failure()` tells afterwards whether it refused a loop.
  cpu::ParallelFor parallel();
  Status failure() const;

 private:
  Expected<const void*> checked_input(size_t index, const char* name, const Shape& expected) const;
  Status converted(OrtStatus* status) const;

  const OrtApi& api_;
  OrtKernelContext& context_;
  const char* op_type_;
  std::string parallel_error_;
};

/// A pair of an input and the output that may take its buffer.
struct Update {
  int input;
  int output;
};

/// The table of callbacks for operator `Op`, which has
///   static constexpr const char* kType; static constexpr ONNXTensorElementDataType kInputs[]; size_t kOutputs;
///   static constexpr Update kUpdates[]; static Expected<Op> create(const Attributes&); Status run(Call&) const.
template <class Op>
class CustomOp : public OrtCustomOp {
 public:
  CustomOp();

 private:
  struct Kernel {
    const OrtApi& api;
    Op op;
  };

  static OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, Op::kType, [&]() -> Status {
      auto op = Op::create(Attributes(*api, *info, Op::kType));
      if (!op) return op.error();
      *kernel = std::make_unique<Kernel>(Kernel{*api, *std::move(op)}).release();
      return success();
    });
  }

  static OrtStatus* compute(void* opaque, OrtKernelContext* context) {
    const auto& kernel = *static_cast<const Kernel*>(opaque);
    return guarded(kernel.api, Op::kType, [&]() -> Status {
      Call call(kernel.api, *context, Op::kType);
      SALA_RETURN_IF_ERROR(kernel.op.run(call));
      return call.failure();
    });
  }

  static size_t may_inplace(int** inputs, int** outputs) {
    const size_t count = std::size(Op::kUpdates);
    *inputs = new int[count];
    *outputs = new int[count];
    for (size_t i = 0; i < count; ++i) {
      (*inputs)[i] = Op::kUpdates[i].input;
      (*outputs)[i] = Op::kUpdates[i].output;
    }
    return count;
  }
};

template <class Op>
CustomOp<Op>::CustomOp() : OrtCustomOp{} {
  version = kApiVersion;
  GetName = [](const OrtCustomOp*) { return Op::kType; };
  GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kInputs); };
  GetInputType = [](const OrtCustomOp*, size_t index) { return Op::kInputs[index]; };
  GetOutputTypeCount = [](const OrtCustomOp*) { return Op::kOutputs; };
  GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  // A hint for the planner. It is not enough for graph inputs and outputs, which the caller binds to one buffer.
  GetMayInplace = may_inplace;
  ReleaseMayInplace = [](int* inputs, int* outputs) {
    delete[] inputs;
    delete[] outputs;
  };
}

/// Instructions that the kernels use; the best that the machine has unless a test asked for others.
cpu::SimdLevel simd_level();

/// The operators, for the registry.
const OrtCustomOp& lightning_attention_op();
const OrtCustomOp& infllmv2_attention_op();

}  // namespace sala::ort
