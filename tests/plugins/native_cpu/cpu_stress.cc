// Calls the CPU operators with random sizes on buffers of exactly the size that the contract names, so that a
// sanitizer sees every access beyond them. Results are checked by the tests through ONNX Runtime; here they must only
// be finite.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "block_quantize/block_quantize_cpu.h"
#include "block_scaled_linear_add/block_scaled_linear_add_cpu.h"
#include "infllmv2_attention/infllmv2_attention_cpu.h"
#include "lightning_attention/lightning_attention_cpu.h"
#include "linear/linear_cpu.h"
#include "rms_norm_block_quantize/rms_norm_block_quantize_cpu.h"

namespace {

using sala::cpu::SimdLevel;

constexpr int kRounds = 40;

std::mt19937 generator(1);

/// Uniform in [low, high].
int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

std::vector<float> values(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> result(static_cast<size_t>(count));
  for (float& value : result) value = normal(generator);
  return result;
}

/// Numbers of a cache, each of magnitude 0.5 to 1, in exactly the bytes that they take.
std::vector<char> cache_values(int64_t count, sala::DataType dtype) {
  std::vector<char> result;
  const auto append = [&](const auto& number) {
    const char* bytes = reinterpret_cast<const char*>(&number);
    result.insert(result.end(), bytes, bytes + sizeof number);
  };
  result.reserve(static_cast<size_t>(count) * (dtype == sala::DataType::kFloat32 ? 4 : 2));
  for (int64_t i = 0; i < count; ++i) {
    const auto sign = static_cast<uint16_t>(draw(0, 1) << 15);
    if (dtype == sala::DataType::kBFloat16) append(static_cast<uint16_t>(sign | draw(0x3f00, 0x3f7f)));
    if (dtype == sala::DataType::kFloat16) append(static_cast<uint16_t>(sign | draw(0x3800, 0x3bff)));
    if (dtype == sala::DataType::kFloat32) append(static_cast<float>(draw(500, 1000)) / (sign == 0 ? 1e3f : -1e3f));
  }
  return result;
}

sala::cpu::ParallelFor one_thread() {
  const auto run = [](void*, sala::cpu::ParallelFor::Task task, size_t count, void* data) {
    for (size_t i = 0; i < count; ++i) task(data, i);
  };
  return {run, nullptr};
}

/// Empty if all is well.
std::string verdict(const sala::Status& status, const std::vector<float>& y) {
  if (!status) return status.error().message;
  for (const float value : y) {
    if (!std::isfinite(value)) return "an output is not finite";
  }
  return {};
}

std::string run_lightning(SimdLevel level) {
  const int64_t batch = draw(1, 2), tokens = draw(1, 140), heads = int64_t{1} << draw(0, 2), dim = 32 * draw(1, 4);
  const auto qkvz = values(batch * tokens * 4 * heads * dim), head_norm = values(dim), o_norm = values(heads * dim);
  const auto cos_sin = values(batch * tokens * dim);
  auto state = values(batch * heads * dim * dim);
  std::vector<float> fresh_state(state.size());
  std::vector<float> y(static_cast<size_t>(batch * tokens * heads * dim));
  const bool in_place = draw(0, 1) == 1;
  const auto status = sala::ops::lightning_attention_cpu(
      {heads, dim, batch, tokens, 1e-6f, 0.1f},
      {qkvz.data(), head_norm.data(), head_norm.data(), o_norm.data(), cos_sin.data(), state.data(), y.data(),
       in_place ? state.data() : fresh_state.data()},
      one_thread(), level);
  return verdict(status, y);
}

sala::ops::InfLLMv2AttentionSizes sparse_sizes() {
  sala::ops::InfLLMv2AttentionSizes sizes{};
  sizes.B = draw(1, 2);
  sizes.T = draw(0, 1) == 1 ? draw(1, 6) : draw(1, 100);
  sizes.num_kv_heads = draw(1, 2);
  sizes.num_heads = sizes.num_kv_heads * draw(1, 20);
  sizes.head_dim = 16 * draw(1, 8);
  sizes.kernel_stride = int64_t{1} << draw(0, 4);
  sizes.kernel_size = draw(sizes.kernel_stride + 1, 2 * sizes.kernel_stride + 1);
  sizes.block_size = sizes.kernel_stride << draw(0, 2);
  sizes.init_blocks = draw(0, 2);
  sizes.window_size = sizes.block_size * draw(0, 3);
  sizes.topk = sizes.init_blocks + draw(1, 4);
  sizes.dense_len = draw(0, 2) == 0 ? 100'000 : -1;
  sizes.scale = 0.1f;
  return sizes;
}

std::string run_sparse(SimdLevel level) {
  auto sizes = sparse_sizes();
  const int64_t past = draw(0, 500);
  sizes.C = past + sizes.T;
  const auto windows = [&](int64_t size, int64_t stride) { return sizes.C < size ? 0 : (sizes.C - size) / stride + 1; };
  sizes.C1 = windows(sizes.kernel_size, sizes.kernel_stride);
  sizes.C2 = windows(4 * sizes.kernel_size, 4 * sizes.kernel_stride);
  const int64_t rows = sizes.B * sizes.num_kv_heads * sizes.head_dim;
  const auto qkvg = values(sizes.B * sizes.T * 2 * (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim);
  constexpr sala::DataType kTypes[] = {sala::DataType::kFloat32, sala::DataType::kBFloat16, sala::DataType::kFloat16};
  const sala::DataType dtype = kTypes[draw(0, 2)];
  auto k = cache_values(rows * sizes.C, dtype), v = cache_values(rows * sizes.C, dtype);
  auto k1 = cache_values(rows * sizes.C1, dtype), k2 = cache_values(rows * sizes.C2, dtype);
  const std::vector<int32_t> lengths(static_cast<size_t>(sizes.B), static_cast<int32_t>(past));
  const std::vector<int32_t> contexts(lengths.size(), static_cast<int32_t>(sizes.C));
  std::vector<float> y(static_cast<size_t>(sizes.B * sizes.T * sizes.num_heads * sizes.head_dim));
  const auto status =
      sala::ops::infllmv2_attention_cpu(sizes,
                                        {dtype, qkvg.data(), lengths.data(), contexts.data(), k.data(), v.data(),
                                         k1.data(), k2.data(), y.data(), k.data(), v.data(), k1.data(), k2.data()},
                                        one_thread(), level);
  return verdict(status, y);
}

/// Weights of any kind: plain numbers near 1, or random codes with scales in a random number of blocks.
std::string run_linear(SimdLevel level) {
  using sala::linear::ScaleType;
  using sala::linear::WeightKind;
  const auto kind = static_cast<WeightKind>(draw(0, static_cast<int64_t>(WeightKind::kNvfp4)));
  const bool is_nibbles = kind == WeightKind::kInt4 || kind == WeightKind::kNvfp4;
  const int64_t tokens = draw(0, 1) == 1 ? draw(1, 9) : draw(30, 80), rows = draw(1, 80);
  const bool is_mxfp8 = kind == WeightKind::kMxfp8;
  const int64_t shared = is_mxfp8 ? sala::linear::kMxBlock : is_nibbles ? int64_t{8} << draw(0, 4) : draw(1, 200);
  const bool has_scales = is_mxfp8 || is_nibbles || kind == WeightKind::kFloat8 || kind == WeightKind::kInt8;
  const int64_t blocks = has_scales ? draw(1, 12) : 1, columns = shared * blocks;
  std::vector<uint8_t> codes(static_cast<size_t>(rows * sala::linear::row_bytes(kind, columns)), 0x3C);
  if (has_scales) {
    for (uint8_t& code : codes) code = static_cast<uint8_t>(draw(0, 126));
  }
  const std::vector<uint8_t> scales(static_cast<size_t>(has_scales ? rows * blocks : 0), 0x38);
  const std::vector<float> wide_scales(scales.size(), 0.5f);
  const bool has_bytes = is_mxfp8 || kind == WeightKind::kNvfp4;
  const ScaleType type = is_mxfp8 ? ScaleType::kE8m0 : has_bytes ? ScaleType::kFloat8 : ScaleType::kFloat32;
  const sala::linear::StoredWeight weight{rows,
                                          codes.data(),
                                          has_bytes ? static_cast<const void*>(scales.data()) : wide_scales.data(),
                                          has_scales ? type : ScaleType::kNone,
                                          has_scales ? rows : 1,
                                          blocks};
  const std::vector<sala::linear::StoredWeight> weights(2, weight);
  const bool silu_mul = draw(0, 1) == 1;
  const auto x = values(tokens * columns);
  std::vector<float> y(static_cast<size_t>(tokens * rows * (silu_mul ? 1 : 2)));
  const auto status = sala::linear::linear_cpu(
      {x.data(), tokens, columns, weights, kind, 1.0f, draw(0, 1) == 1, silu_mul, y.data()}, one_thread(), level);
  return verdict(status, y);
}

/// Rows that one of the quantising operators writes are an operand of a product.
std::string run_block_scaled(SimdLevel level) {
  const int64_t batch = draw(1, 2), tokens = draw(0, 1) == 1 ? draw(1, 9) : draw(200, 400), gated = draw(0, 1);
  const int64_t rows = batch * tokens, columns = 128 * draw(1, 6), outputs = 8 * draw(1, 20);
  const auto quantized = [&](int64_t count, bool is_normed, std::vector<uint8_t>& codes, std::vector<int32_t>& scales) {
    codes.resize(static_cast<size_t>(count * columns));
    scales.resize(static_cast<size_t>(count * columns / 128));
    const auto x = values(count * columns * (is_normed ? 1 : 1 + gated)), norm = values(columns);
    if (is_normed) {
      return sala::ops::rms_norm_block_quantize_cpu(
          {columns, 1, count, 1e-6f}, {x.data(), norm.data(), codes.data(), scales.data()}, one_thread(), level);
    }
    return sala::ops::block_quantize_cpu({columns, gated, 1, count}, {x.data(), codes.data(), scales.data()},
                                         one_thread(), level);
  };
  std::vector<uint8_t> codes, weight;
  std::vector<int32_t> scales, weight_scales;
  if (const auto status = quantized(rows, draw(0, 1) == 1, codes, scales); !status) return status.error().message;
  if (const auto status = quantized(outputs, false, weight, weight_scales); !status) return status.error().message;
  const auto stream = values(rows * outputs);
  std::vector<float> y(stream.size());
  const auto status = sala::ops::block_scaled_linear_add_cpu(
      {batch, tokens, columns, outputs, 0.5f},
      {codes.data(), scales.data(), weight.data(), weight_scales.data(), stream.data(), y.data()}, one_thread(), level);
  return verdict(status, y);
}

}  // namespace

int main() {
  int calls = 0;
  for (int round = 0; round < kRounds; ++round) {
    for (const SimdLevel level : sala::cpu::kSimdLevels) {
      if (!sala::cpu::runs(level)) continue;
      for (const std::string& problem :
           {run_lightning(level), run_sparse(level), run_linear(level), run_linear(level), run_block_scaled(level)}) {
        if (!problem.empty()) {
          std::fprintf(stderr, "%s, round %d: %s\n", sala::cpu::name_of(level), round, problem.c_str());
          return 1;
        }
        ++calls;
      }
    }
  }
  std::printf("%d calls\n", calls);
  return 0;
}
