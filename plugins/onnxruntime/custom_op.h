// The operators of cpu/operators.h as ONNX Runtime custom operators.

#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/result.h"
#include "cpu/operators.h"
#include "engines/onnxruntime/interface.h"
#include "onnxruntime/call.h"

namespace sala::ort {

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

/// A node of the graph: its operator, the type of its caches and its attributes.
struct Kernel {
  /// Fails if the node lacks an attribute of the contract.
  static Expected<Kernel> create(const cpu::Operator& op, DataType cache_dtype, const OrtApi& api,
                                 const OrtKernelInfo& info);

  /// Checks a call against the contract and serves it on ONNX Runtime's own threads.
  Status run(OrtKernelContext& context) const;

  const OrtApi& api;
  const cpu::Operator& op;
  DataType cache_dtype;
  std::vector<int64_t> integers;  // of the attributes, as in ContractTable
  std::vector<float> floats;
};

/// The tensor element type of ONNX Runtime for a type of a contract. Activations are float32 on a CPU.
constexpr ONNXTensorElementDataType element_type(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DataType::kBFloat16:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DataType::kFloat8E4M3FN:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;
    case DataType::kInt32:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DataType::kInt64:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    default:
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
}

/// Whether input `index` has the type of the activations and is updated in place.
constexpr bool is_cache(const ContractTable& contract, size_t index) {
  for (const TensorRule& output : contract.outputs) {
    if (output.updates == static_cast<int32_t>(index)) return output.dtype == DataType::kActivation;
  }
  return false;
}

constexpr bool has_updates(const ContractTable& contract) {
  for (const TensorRule& output : contract.outputs) {
    if (output.updates != kNone) return true;
  }
  return false;
}

constexpr bool has_caches(const ContractTable& contract) {
  for (size_t i = 0; i < contract.inputs.size(); ++i) {
    if (is_cache(contract, i)) return true;
  }
  return false;
}

/// The table of callbacks for the operator cpu::kOperators[kIndex] with caches of one type. ONNX Runtime takes several
/// tables of one name, and gives a node the one whose types are those of the node's tensors.
template <size_t kIndex, DataType kCacheType>
class CustomOp : public OrtCustomOp {
 public:
  CustomOp();

 private:
  static constexpr const cpu::Operator& kOperator = cpu::kOperators[kIndex];
  static constexpr const ContractTable& kContract = kOperator.contract;

  static ONNXTensorElementDataType input_type(const OrtCustomOp*, size_t index) {
    return element_type(is_cache(kContract, index) ? kCacheType : kContract.inputs[index].dtype);
  }

  static ONNXTensorElementDataType output_type(const OrtCustomOp* self, size_t index) {
    const TensorRule& rule = kContract.outputs[index];
    return rule.updates == kNone ? element_type(rule.dtype) : input_type(self, static_cast<size_t>(rule.updates));
  }

  static OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, kContract.type, [&]() -> Status {
      auto created = Kernel::create(kOperator, kCacheType, *api, *info);
      if (!created) return created.error();
      *kernel = std::make_unique<Kernel>(*std::move(created)).release();
      return success();
    });
  }

  static OrtStatus* compute(void* opaque, OrtKernelContext* context) {
    const auto& kernel = *static_cast<const Kernel*>(opaque);
    return guarded(kernel.api, kContract.type, [&] { return kernel.run(*context); });
  }

  static size_t may_inplace(int** inputs, int** outputs) {
    // Of a count of 0 ONNX Runtime would release nothing.
    if (!has_updates(kContract)) return 0;
    *inputs = new int[kContract.outputs.size()];
    *outputs = new int[kContract.outputs.size()];
    size_t count = 0;
    for (size_t i = 0; i < kContract.outputs.size(); ++i) {
      if (kContract.outputs[i].updates == kNone) continue;
      (*inputs)[count] = kContract.outputs[i].updates;
      (*outputs)[count++] = static_cast<int>(i);
    }
    return count;
  }
};

template <size_t kIndex, DataType kCacheType>
CustomOp<kIndex, kCacheType>::CustomOp() : OrtCustomOp{} {
  set_common_callbacks(*this);
  GetName = [](const OrtCustomOp*) { return kContract.type; };
  GetInputTypeCount = [](const OrtCustomOp*) { return kContract.inputs.size(); };
  GetInputType = input_type;
  GetOutputTypeCount = [](const OrtCustomOp*) { return kContract.outputs.size(); };
  GetOutputType = output_type;
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

}  // namespace sala::ort
