#include "onnxruntime/custom_op.h"

#include "common/contract.h"
#include "onnxruntime/call.h"

namespace sala::ort {

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
    const auto input = call.input(inputs.size());
    if (!input) return input.error();
    SALA_RETURN_IF_ERROR(bind_shape(contract, rule, input->shape, *names));
    inputs.push_back(input->data);
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
