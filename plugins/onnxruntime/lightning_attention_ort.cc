#include "lightning_attention/lightning_attention_cpu.h"
#include "onnxruntime/custom_op.h"

namespace sala::ort {
namespace {

class LightningAttention {
 public:
  static constexpr const char* kType = "LightningAttention";
  static constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kFloat, kFloat, kFloat, kFloat, kFloat};
  static constexpr size_t kOutputs = 2;
  static constexpr Update kUpdates[] = {{5, 1}};

  static Expected<LightningAttention> create(const Attributes& attributes) {
    LightningAttention op;
    SALA_RETURN_IF_ERROR(attributes.read("num_heads", op.sizes_.num_heads));
    SALA_RETURN_IF_ERROR(attributes.read("head_dim", op.sizes_.head_dim));
    SALA_RETURN_IF_ERROR(attributes.read("eps", op.sizes_.eps));
    SALA_RETURN_IF_ERROR(attributes.read("scale", op.sizes_.scale));
    return op;
  }

  Status run(Call& call) const {
    auto packed = call.input_shape(0);
    if (!packed) return packed.error();
    if (packed->size() != 3) return error(kType, ": qkvz has ", packed->size(), " dimensions, expected 3");
    ops::LightningAttentionSizes sizes = sizes_;
    sizes.batch = (*packed)[0];
    sizes.tokens = (*packed)[1];
    const int64_t dim = sizes.head_dim;
    const int64_t width = sizes.num_heads * dim;
    const Shape state_shape{sizes.batch, sizes.num_heads, dim, dim};
    ops::LightningAttentionTensors tensors{};
    SALA_RETURN_IF_ERROR(call.input(0, "qkvz", {sizes.batch, sizes.tokens, 4 * width}, tensors.qkvz));
    SALA_RETURN_IF_ERROR(call.input(1, "q_norm", {dim}, tensors.q_norm));
    SALA_RETURN_IF_ERROR(call.input(2, "k_norm", {dim}, tensors.k_norm));
    SALA_RETURN_IF_ERROR(call.input(3, "o_norm", {width}, tensors.o_norm));
    SALA_RETURN_IF_ERROR(call.input(4, "rope_cos_sin", {sizes.batch, sizes.tokens, dim}, tensors.rope_cos_sin));
    SALA_RETURN_IF_ERROR(call.input(5, "state", state_shape, tensors.state));
    SALA_RETURN_IF_ERROR(call.output(0, {sizes.batch, sizes.tokens, width}, tensors.y));
    SALA_RETURN_IF_ERROR(call.output(1, state_shape, tensors.state_out));
    return ops::lightning_attention_cpu(sizes, tensors, call.parallel(), simd_level());
  }

 private:
  ops::LightningAttentionSizes sizes_{};
};

}  // namespace

const OrtCustomOp& lightning_attention_op() {
  static const CustomOp<LightningAttention> op;
  return op;
}

}  // namespace sala::ort
