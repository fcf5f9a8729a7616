// The operators on the CPU, by contract. Written by `python -m plugins.aot.contracts`.
// clang-format off

#pragma once

#include "cpu/operator.h"
#include "lightning_attention/lightning_attention_cpu.h"
#include "infllmv2_attention/infllmv2_attention_cpu.h"

namespace sala::cpu {

inline constexpr Operator kOperators[] = {
    {ops::lightning_attention::kContract,
     [](const Call& call, const ParallelFor& parallel, SimdLevel level) {
       const ops::LightningAttentionSizes sizes{call.names[0], call.names[1], call.names[2], call.names[3],
           call.floats[0], call.floats[1]};
       const ops::LightningAttentionTensors tensors{call.input<float>(0), call.input<float>(1), call.input<float>(2),
           call.input<float>(3), call.input<float>(4), call.input<float>(5), call.output<float>(0),
           call.output<float>(1)};
       return ops::lightning_attention_cpu(sizes, tensors, parallel, level);
     }},
    {ops::infllmv2_attention::kContract,
     [](const Call& call, const ParallelFor& parallel, SimdLevel level) {
       const ops::InfLLMv2AttentionSizes sizes{call.names[0], call.names[1], call.names[2], call.names[3],
           call.names[4], call.names[5], call.names[6], call.names[7], call.names[8], call.names[9], call.names[10],
           call.names[11], call.names[12], call.names[13], call.names[14], call.floats[0]};
       const ops::InfLLMv2AttentionTensors tensors{call.input<float>(0), call.input<int32_t>(1), call.input<int32_t>(2),
           call.input<float>(3), call.input<float>(4), call.input<float>(5), call.input<float>(6),
           call.output<float>(0), call.output<float>(1), call.output<float>(2), call.output<float>(3),
           call.output<float>(4)};
       return ops::infllmv2_attention_cpu(sizes, tensors, parallel, level);
     }},
};

}  // namespace sala::cpu
