#include "infllmv2_attention/infllmv2_attention_cpu.h"
#include "onnxruntime/custom_op.h"

namespace sala::ort {
namespace {

class InfLLMv2Attention {
 public:
  static constexpr const char* kType = "InfLLMv2Attention";
  static constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  static constexpr ONNXTensorElementDataType kInt = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kInt, kInt, kFloat, kFloat, kFloat, kFloat};
  static constexpr size_t kOutputs = 5;
  static constexpr Update kUpdates[] = {{3, 1}, {4, 2}, {5, 3}, {6, 4}};

  static Expected<InfLLMv2Attention> create(const Attributes& attributes) {
    InfLLMv2Attention op;
    ops::InfLLMv2AttentionSizes& sizes = op.sizes_;
    SALA_RETURN_IF_ERROR(attributes.read("num_heads", sizes.num_heads));
    SALA_RETURN_IF_ERROR(attributes.read("num_kv_heads", sizes.num_kv_heads));
    SALA_RETURN_IF_ERROR(attributes.read("head_dim", sizes.head_dim));
    SALA_RETURN_IF_ERROR(attributes.read("scale", sizes.scale));
    SALA_RETURN_IF_ERROR(attributes.read("kernel_size", sizes.kernel_size));
    SALA_RETURN_IF_ERROR(attributes.read("kernel_stride", sizes.kernel_stride));
    SALA_RETURN_IF_ERROR(attributes.read("block_size", sizes.block_size));
    SALA_RETURN_IF_ERROR(attributes.read("topk", sizes.topk));
    SALA_RETURN_IF_ERROR(attributes.read("window_size", sizes.window_size));
    SALA_RETURN_IF_ERROR(attributes.read("init_blocks", sizes.init_blocks));
    SALA_RETURN_IF_ERROR(attributes.read("dense_len", sizes.dense_len));
    return op;
  }

  Status run(Call& call) const {
    ops::InfLLMv2AttentionSizes sizes = sizes_;
    SALA_RETURN_IF_ERROR(read_extents(call, sizes));
    const int64_t width = sizes.num_heads * sizes.head_dim;
    const int64_t packed_width = 2 * (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim;
    const auto cache_shape = [&](int64_t capacity) {
      return Shape{sizes.batch, sizes.num_kv_heads, capacity, sizes.head_dim};
    };
    ops::InfLLMv2AttentionTensors tensors{};
    SALA_RETURN_IF_ERROR(call.input(0, "qkvg", {sizes.batch, sizes.tokens, packed_width}, tensors.qkvg));
    SALA_RETURN_IF_ERROR(call.input(1, "past_length", {sizes.batch}, tensors.past_length));
    SALA_RETURN_IF_ERROR(call.input(2, "context_length", {sizes.batch}, tensors.context_length));
    SALA_RETURN_IF_ERROR(call.input(3, "k_cache", cache_shape(sizes.capacity), tensors.k_cache));
    SALA_RETURN_IF_ERROR(call.input(4, "v_cache", cache_shape(sizes.capacity), tensors.v_cache));
    SALA_RETURN_IF_ERROR(call.input(5, "k1_cache", cache_shape(sizes.k1_capacity), tensors.k1_cache));
    SALA_RETURN_IF_ERROR(call.input(6, "k2_cache", cache_shape(sizes.k2_capacity), tensors.k2_cache));
    SALA_RETURN_IF_ERROR(call.output(0, {sizes.batch, sizes.tokens, width}, tensors.y));
    SALA_RETURN_IF_ERROR(call.output(1, cache_shape(sizes.capacity), tensors.k_cache_out));
    SALA_RETURN_IF_ERROR(call.output(2, cache_shape(sizes.capacity), tensors.v_cache_out));
    SALA_RETURN_IF_ERROR(call.output(3, cache_shape(sizes.k1_capacity), tensors.k1_cache_out));
    SALA_RETURN_IF_ERROR(call.output(4, cache_shape(sizes.k2_capacity), tensors.k2_cache_out));
    return ops::infllmv2_attention_cpu(sizes, tensors, call.parallel(), simd_level());
  }

 private:
  /// The dimensions that shapes alone decide.
  static Status read_extents(const Call& call, ops::InfLLMv2AttentionSizes& sizes) {
    const auto extent = [&](size_t input, const char* name, size_t rank, size_t axis, int64_t& value) -> Status {
      auto shape = call.input_shape(input);
      if (!shape) return shape.error();
      if (shape->size() != rank)
        return error(kType, ": ", name, " has ", shape->size(), " dimensions, expected ", rank);
      value = (*shape)[axis];
      return success();
    };
    SALA_RETURN_IF_ERROR(extent(0, "qkvg", 3, 0, sizes.batch));
    SALA_RETURN_IF_ERROR(extent(0, "qkvg", 3, 1, sizes.tokens));
    SALA_RETURN_IF_ERROR(extent(3, "k_cache", 4, 2, sizes.capacity));
    SALA_RETURN_IF_ERROR(extent(5, "k1_cache", 4, 2, sizes.k1_capacity));
    return extent(6, "k2_cache", 4, 2, sizes.k2_capacity);
  }

  ops::InfLLMv2AttentionSizes sizes_{};
};

}  // namespace

const OrtCustomOp& infllmv2_attention_op() {
  static const CustomOp<InfLLMv2Attention> op;
  return op;
}

}  // namespace sala::ort
