#include "infllmv2_attention/infllmv2_attention_cpu.h"

#include <algorithm>
#include <cstring>

#include "infllmv2_attention/row_drivers.h"

namespace sala::ops {
namespace {

const InfLLMv2KernelSet& kernels_of(cpu::SimdLevel level) {
#define SALA_COMPILED(constant, name) {cpu::SimdLevel::constant, &name::kInfLLMv2Kernels},
  return cpu::highest<InfLLMv2KernelSet>({SALA_FOR_EACH_SIMD_LEVEL(SALA_COMPILED)}, level);
#undef SALA_COMPILED
}

const InfLLMv2Kernels& kernels_of(cpu::SimdLevel level, DataType cache_dtype) {
  const InfLLMv2KernelSet& set = kernels_of(level);
  switch (cache_dtype) {
    case DataType::kBFloat16:
      return set.bfloat16;
    case DataType::kFloat16:
      return set.float16;
    default:
      return set.float32;
  }
}

/// Complete windows of `size` keys every `stride` among the first `length` keys.
int64_t complete_windows(int64_t length, int64_t size, int64_t stride) {
  return length < size ? 0 : (length - size) / stride + 1;
}

Status check_limits(const InfLLMv2AttentionSizes& sizes) {
  if (sizes.num_heads / sizes.num_kv_heads > kMaxGroupHeads) {
    return error("InfLLMv2Attention: num_heads / num_kv_heads = ", sizes.num_heads / sizes.num_kv_heads,
                 "; the CPU kernels take at most ", kMaxGroupHeads);
  }
  if (sizes.head_dim % 16 != 0) {
    return error("InfLLMv2Attention: head_dim = ", sizes.head_dim, "; the CPU kernels need a multiple of 16");
  }
  return success();
}

Status check_lengths(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors) {
  for (int64_t b = 0; b < sizes.B; ++b) {
    const int64_t past = tensors.past_length[b];
    if (past < 0 || past + sizes.T > sizes.C) {
      return error("InfLLMv2Attention: past_length[", b, "] = ", past, " and ", sizes.T,
                   " tokens do not fit the cache of ", sizes.C);
    }
    if (tensors.context_length[b] < past + sizes.T) {
      return error("InfLLMv2Attention: context_length[", b, "] = ", tensors.context_length[b],
                   " is less than the tokens after this chunk, ", past + sizes.T);
    }
  }
  return success();
}

void copy_cache(const void* from, void* to, int64_t bytes, const cpu::ParallelFor& parallel) {
  if (from == to) return;
  constexpr int64_t kPart = int64_t{4} << 20;
  cpu::parallel_for(parallel, (bytes + kPart - 1) / kPart, [&](int64_t i) {
    const int64_t count = std::min(kPart, bytes - i * kPart);
    std::memcpy(static_cast<char*>(to) + i * kPart, static_cast<const char*>(from) + i * kPart,
                static_cast<size_t>(count));
  });
}

/// Writes keys and values of the chunk to the caches.
void append(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors,
            const InfLLMv2Kernels& kernels, const cpu::ParallelFor& parallel) {
  constexpr int64_t kPartTokens = 256;
  const int64_t dim = sizes.head_dim;
  const int64_t packed_width = 2 * (sizes.num_heads + sizes.num_kv_heads) * dim;
  const int64_t parts = (sizes.T + kPartTokens - 1) / kPartTokens;
  cpu::parallel_for(parallel, sizes.B * sizes.num_kv_heads * parts, [&](int64_t i) {
    const int64_t head = i / parts;
    const int64_t batch = head / sizes.num_kv_heads;
    const int64_t first = i % parts * kPartTokens;
    const int64_t row = head * sizes.C + tensors.past_length[batch];
    const float* k =
        tensors.qkvg + batch * sizes.T * packed_width + sizes.num_heads * dim + head % sizes.num_kv_heads * dim;
    const float* v = k + sizes.num_kv_heads * dim;
    for (int64_t token = first; token < std::min(first + kPartTokens, sizes.T); ++token) {
      const int64_t offset = (row + token) * dim * kernels.cache_bytes;
      kernels.append(k + token * packed_width, dim, static_cast<char*>(tensors.k_cache_out) + offset);
      kernels.append(v + token * packed_width, dim, static_cast<char*>(tensors.v_cache_out) + offset);
    }
  });
}

/// Writes the compressed keys of every window that ends in the chunk.
void compress(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors, int64_t size,
              int64_t stride, void* compressed, int64_t capacity, const InfLLMv2Kernels& kernels,
              const cpu::ParallelFor& parallel) {
  constexpr int64_t kPartWindows = 64;
  const int64_t row_bytes = sizes.head_dim * kernels.cache_bytes;
  const int64_t parts = (sizes.T / stride + 1 + kPartWindows - 1) / kPartWindows;
  cpu::parallel_for(parallel, sizes.B * sizes.num_kv_heads * parts, [&](int64_t i) {
    const int64_t head = i / parts;
    const int64_t past = tensors.past_length[head / sizes.num_kv_heads];
    const int64_t first = complete_windows(past, size, stride) + i % parts * kPartWindows;
    const int64_t last = std::min(first + kPartWindows, complete_windows(past + sizes.T, size, stride));
    for (int64_t window = first; window < last; ++window) {
      const char* rows = static_cast<const char*>(tensors.k_cache_out) + (head * sizes.C + window * stride) * row_bytes;
      kernels.mean(rows, size, sizes.head_dim, static_cast<char*>(compressed) + (head * capacity + window) * row_bytes);
    }
  });
}

}  // namespace

Status infllmv2_attention_cpu(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors,
                              const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  SALA_RETURN_IF_ERROR(check_limits(sizes));
  SALA_RETURN_IF_ERROR(check_lengths(sizes, tensors));
  const InfLLMv2Kernels& kernels = kernels_of(level, tensors.cache_dtype);
  const int64_t rows = sizes.B * sizes.num_kv_heads * sizes.head_dim * kernels.cache_bytes;
  copy_cache(tensors.k_cache, tensors.k_cache_out, rows * sizes.C, parallel);
  copy_cache(tensors.v_cache, tensors.v_cache_out, rows * sizes.C, parallel);
  copy_cache(tensors.k1_cache, tensors.k1_cache_out, rows * sizes.C1, parallel);
  copy_cache(tensors.k2_cache, tensors.k2_cache_out, rows * sizes.C2, parallel);
  append(sizes, tensors, kernels, parallel);
  compress(sizes, tensors, sizes.kernel_size, sizes.kernel_stride, tensors.k1_cache_out, sizes.C1, kernels, parallel);
  compress(sizes, tensors, 4 * sizes.kernel_size, 4 * sizes.kernel_stride, tensors.k2_cache_out, sizes.C2, kernels,
           parallel);
  const Plan plan(sizes, kernels);
  return sizes.T <= kDecodeTokens ? run_decode(plan, tensors, parallel) : run_prefill(plan, tensors, parallel);
}

}  // namespace sala::ops
