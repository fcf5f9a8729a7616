// The operators on the CPU, by contract. Written by `python -m plugins.aot.contracts`.
// clang-format off

#pragma once

#include "cpu/operator.h"
#include "lightning_attention/lightning_attention_cpu.h"
#include "infllmv2_attention/infllmv2_attention_cpu.h"
#include "block_quantize/block_quantize_cpu.h"
#include "rms_norm_block_quantize/rms_norm_block_quantize_cpu.h"
#include "block_scaled_linear/block_scaled_linear_cpu.h"
#include "block_scaled_linear_add/block_scaled_linear_add_cpu.h"

namespace sala::cpu {

inline constexpr Operator kOperators[] = {
    {ops::lightning_attention::kContract,
     [](const Arguments& arguments, const ParallelFor& parallel, SimdLevel level) {
       const ops::LightningAttentionSizes sizes{arguments.names[0], arguments.names[1], arguments.names[2],
           arguments.names[3], arguments.floats[0], arguments.floats[1]};
       const ops::LightningAttentionTensors tensors{arguments.input<float>(0), arguments.input<float>(1),
           arguments.input<float>(2), arguments.input<float>(3), arguments.input<float>(4), arguments.input<float>(5),
           arguments.output<float>(0), arguments.output<float>(1)};
       return ops::lightning_attention_cpu(sizes, tensors, parallel, level);
     }},
    {ops::infllmv2_attention::kContract,
     [](const Arguments& arguments, const ParallelFor& parallel, SimdLevel level) {
       const ops::InfLLMv2AttentionSizes sizes{arguments.names[0], arguments.names[1], arguments.names[2],
           arguments.names[3], arguments.names[4], arguments.names[5], arguments.names[6], arguments.names[7],
           arguments.names[8], arguments.names[9], arguments.names[10], arguments.names[11], arguments.names[12],
           arguments.names[13], arguments.names[14], arguments.floats[0]};
       const ops::InfLLMv2AttentionTensors tensors{arguments.cache_dtype, arguments.input<float>(0),
           arguments.input<int32_t>(1), arguments.input<int32_t>(2), arguments.input<void>(3), arguments.input<void>(4),
           arguments.input<void>(5), arguments.input<void>(6), arguments.output<float>(0), arguments.output<void>(1),
           arguments.output<void>(2), arguments.output<void>(3), arguments.output<void>(4)};
       return ops::infllmv2_attention_cpu(sizes, tensors, parallel, level);
     }},
    {ops::block_quantize::kContract,
     [](const Arguments& arguments, const ParallelFor& parallel, SimdLevel level) {
       const ops::BlockQuantizeSizes sizes{arguments.names[0], arguments.names[1], arguments.names[2],
           arguments.names[3]};
       const ops::BlockQuantizeTensors tensors{arguments.input<float>(0), arguments.output<uint8_t>(0),
           arguments.output<int32_t>(1)};
       return ops::block_quantize_cpu(sizes, tensors, parallel, level);
     }},
    {ops::rms_norm_block_quantize::kContract,
     [](const Arguments& arguments, const ParallelFor& parallel, SimdLevel level) {
       const ops::RMSNormBlockQuantizeSizes sizes{arguments.names[0], arguments.names[1], arguments.names[2],
           arguments.floats[0]};
       const ops::RMSNormBlockQuantizeTensors tensors{arguments.input<float>(0), arguments.input<float>(1),
           arguments.output<uint8_t>(0), arguments.output<int32_t>(1)};
       return ops::rms_norm_block_quantize_cpu(sizes, tensors, parallel, level);
     }},
    {ops::block_scaled_linear::kContract,
     [](const Arguments& arguments, const ParallelFor& parallel, SimdLevel level) {
       const ops::BlockScaledLinearSizes sizes{arguments.names[0], arguments.names[1], arguments.names[2],
           arguments.names[3]};
       const ops::BlockScaledLinearTensors tensors{arguments.input<uint8_t>(0), arguments.input<int32_t>(1),
           arguments.input<uint8_t>(2), arguments.input<int32_t>(3), arguments.output<float>(0)};
       return ops::block_scaled_linear_cpu(sizes, tensors, parallel, level);
     }},
    {ops::block_scaled_linear_add::kContract,
     [](const Arguments& arguments, const ParallelFor& parallel, SimdLevel level) {
       const ops::BlockScaledLinearAddSizes sizes{arguments.names[0], arguments.names[1], arguments.names[2],
           arguments.names[3], arguments.floats[0]};
       const ops::BlockScaledLinearAddTensors tensors{arguments.input<uint8_t>(0), arguments.input<int32_t>(1),
           arguments.input<uint8_t>(2), arguments.input<int32_t>(3), arguments.input<float>(4),
           arguments.output<float>(0)};
       return ops::block_scaled_linear_add_cpu(sizes, tensors, parallel, level);
     }},
};

}  // namespace sala::cpu
