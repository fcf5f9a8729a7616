#include "infllmv2_attention/infllmv2_attention_cpu.h"

#include <algorithm>
#include <cstring>

#include "infllmv2_attention/row_drivers.h"

namespace sala::ops {
namespace {

const InfLLMv2Kernels& kernels_of(cpu::SimdLevel level) {
  switch (level) {
#define SALA_CASE(constant, name) \
  case cpu::SimdLevel::constant:  \
    return name::kInfLLMv2Kernels;
    SALA_FOR_EACH_SIMD_LEVEL(SALA_CASE)
#undef SALA_CASE
    default:
      return baseline::kInfLLMv2Kernels;
  }
}

/// Complete windows of `size` keys every `stride` among the first `length` keys.
int64_t complete_windows(int64_t length, int64_t size, int64_t stride) {
  return length < size ? 0 : (length - size) / stride + 1;
}

Status check_attributes(const InfLLMv2AttentionSizes& sizes) {
  const auto refuse = [](const auto&... parts) { return error("InfLLMv2Attention: ", parts...); };
  if (sizes.num_kv_heads < 1 || sizes.num_heads < 1 || sizes.num_heads % sizes.num_kv_heads != 0) {
    return refuse("num_heads = ", sizes.num_heads, ", num_kv_heads = ", sizes.num_kv_heads,
                  "; query heads must divide evenly among key heads");
  }
  if (sizes.num_heads / sizes.num_kv_heads > kMaxGroupHeads) {
    return refuse("num_heads / num_kv_heads = ", sizes.num_heads / sizes.num_kv_heads,
                  "; the CPU kernels take at most ", kMaxGroupHeads);
  }
  if (sizes.head_dim < 1 || sizes.head_dim % 16 != 0) {
    return refuse("head_dim = ", sizes.head_dim, "; the CPU kernels need a multiple of 16");
  }
  if (sizes.kernel_size < 1 || sizes.kernel_stride < 1 || sizes.block_size < 1 ||
      sizes.block_size % sizes.kernel_stride != 0) {
    return refuse("kernel_size = ", sizes.kernel_size, ", kernel_stride = ", sizes.kernel_stride,
                  ", block_size = ", sizes.block_size, "; a block holds a whole number of strides");
  }
  if (sizes.window_size < 0 || sizes.window_size % sizes.block_size != 0) {
    return refuse("window_size = ", sizes.window_size, " is not a multiple of block_size = ", sizes.block_size);
  }
  if (sizes.init_blocks < 0 || sizes.topk < sizes.init_blocks + 1) {
    return refuse("topk = ", sizes.topk, ", init_blocks = ", sizes.init_blocks,
                  "; the forced blocks must fit among the taken ones");
  }
  return success();
}

Status check_lengths(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors) {
  if (sizes.batch < 0 || sizes.tokens < 1) {
    return error("InfLLMv2Attention: batch = ", sizes.batch, ", tokens = ", sizes.tokens,
                 "; a chunk holds at least one token");
  }
  const int64_t need_k1 = complete_windows(sizes.capacity, sizes.kernel_size, sizes.kernel_stride);
  const int64_t need_k2 = complete_windows(sizes.capacity, 4 * sizes.kernel_size, 4 * sizes.kernel_stride);
  if (sizes.k1_capacity < need_k1 || sizes.k2_capacity < need_k2) {
    return error("InfLLMv2Attention: k1_cache and k2_cache hold ", sizes.k1_capacity, " and ", sizes.k2_capacity,
                 " keys; a cache of ", sizes.capacity, " tokens needs ", need_k1, " and ", need_k2);
  }
  for (int64_t b = 0; b < sizes.batch; ++b) {
    const int64_t past = tensors.past_length[b];
    if (past < 0 || past + sizes.tokens > sizes.capacity) {
      return error("InfLLMv2Attention: past_length[", b, "] = ", past, " and ", sizes.tokens,
                   " tokens do not fit the cache of ", sizes.capacity);
    }
    if (tensors.context_length[b] < past + sizes.tokens) {
      return error("InfLLMv2Attention: context_length[", b, "] = ", tensors.context_length[b],
                   " is less than the tokens after this chunk, ", past + sizes.tokens);
    }
  }
  return success();
}

void copy_cache(const float* from, float* to, int64_t floats, const cpu::ParallelFor& parallel) {
  if (from == to) return;
  constexpr int64_t kPart = int64_t{1} << 20;
  cpu::parallel_for(parallel, (floats + kPart - 1) / kPart, [&](int64_t i) {
    const int64_t count = std::min(kPart, floats - i * kPart);
    std::memcpy(to + i * kPart, from + i * kPart, static_cast<size_t>(count) * sizeof(float));
  });
}

/// Writes keys and values of the chunk to the caches.
void append(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors,
            const cpu::ParallelFor& parallel) {
  constexpr int64_t kPartTokens = 256;
  const int64_t dim = sizes.head_dim;
  const int64_t packed_width = 2 * (sizes.num_heads + sizes.num_kv_heads) * dim;
  const int64_t parts = (sizes.tokens + kPartTokens - 1) / kPartTokens;
  cpu::parallel_for(parallel, sizes.batch * sizes.num_kv_heads * parts, [&](int64_t i) {
    const int64_t head = i / parts;
    const int64_t batch = head / sizes.num_kv_heads;
    const int64_t first = i % parts * kPartTokens;
    const int64_t row = head * sizes.capacity + tensors.past_length[batch];
    const float* k =
        tensors.qkvg + batch * sizes.tokens * packed_width + sizes.num_heads * dim + head % sizes.num_kv_heads * dim;
    const float* v = k + sizes.num_kv_heads * dim;
    for (int64_t token = first; token < std::min(first + kPartTokens, sizes.tokens); ++token) {
      const size_t bytes = static_cast<size_t>(dim) * sizeof(float);
      std::memcpy(tensors.k_cache_out + (row + token) * dim, k + token * packed_width, bytes);
      std::memcpy(tensors.v_cache_out + (row + token) * dim, v + token * packed_width, bytes);
    }
  });
}

/// Writes the compressed keys of every window that ends in the chunk.
void compress(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors, int64_t size,
              int64_t stride, float* compressed, int64_t capacity, const InfLLMv2Kernels& kernels,
              const cpu::ParallelFor& parallel) {
  constexpr int64_t kPartWindows = 64;
  const int64_t dim = sizes.head_dim;
  const int64_t parts = (sizes.tokens / stride + 1 + kPartWindows - 1) / kPartWindows;
  cpu::parallel_for(parallel, sizes.batch * sizes.num_kv_heads * parts, [&](int64_t i) {
    const int64_t head = i / parts;
    const int64_t past = tensors.past_length[head / sizes.num_kv_heads];
    const int64_t first = complete_windows(past, size, stride) + i % parts * kPartWindows;
    const int64_t last = std::min(first + kPartWindows, complete_windows(past + sizes.tokens, size, stride));
    for (int64_t window = first; window < last; ++window) {
      const float* rows = tensors.k_cache_out + (head * sizes.capacity + window * stride) * dim;
      kernels.mean(rows, size, dim, compressed + (head * capacity + window) * dim);
    }
  });
}

}  // namespace

Status infllmv2_attention_cpu(const InfLLMv2AttentionSizes& sizes, const InfLLMv2AttentionTensors& tensors,
                              const cpu::ParallelFor& parallel, cpu::SimdLevel level) {
  SALA_RETURN_IF_ERROR(check_attributes(sizes));
  SALA_RETURN_IF_ERROR(check_lengths(sizes, tensors));
  const InfLLMv2Kernels& kernels = kernels_of(level);
  const int64_t rows = sizes.batch * sizes.num_kv_heads * sizes.head_dim;
  copy_cache(tensors.k_cache, tensors.k_cache_out, rows * sizes.capacity, parallel);
  copy_cache(tensors.v_cache, tensors.v_cache_out, rows * sizes.capacity, parallel);
  copy_cache(tensors.k1_cache, tensors.k1_cache_out, rows * sizes.k1_capacity, parallel);
  copy_cache(tensors.k2_cache, tensors.k2_cache_out, rows * sizes.k2_capacity, parallel);
  append(sizes, tensors, parallel);
  compress(sizes, tensors, sizes.kernel_size, sizes.kernel_stride, tensors.k1_cache_out, sizes.k1_capacity, kernels,
           parallel);
  compress(sizes, tensors, 4 * sizes.kernel_size, 4 * sizes.kernel_stride, tensors.k2_cache_out, sizes.k2_capacity,
           kernels, parallel);
  const Plan plan(sizes, kernels);
  return sizes.tokens <= kDecodeTokens ? run_decode(plan, tensors, parallel) : run_prefill(plan, tensors, parallel);
}

}  // namespace sala::ops
