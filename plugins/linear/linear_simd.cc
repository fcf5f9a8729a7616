#include "linear/linear_simd.h"

#include "linear/few_tokens_simd.h"
#include "linear/many_tokens_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

Layout layout(const Product& product) {
  return with_format(product, [&](auto format, ScaleUse) -> Layout {
    using Format = decltype(format);
    return {steps_of<Format>(product) * Format::kVectors * kLanes, kTileTokens, kPanelRows};
  });
}

void pack(const Product& product, const Inputs& inputs, int64_t tile_tokens, float* tile) {
  with_format(product, [&](auto format, ScaleUse) { pack_as<decltype(format)>(product, inputs, tile_tokens, tile); });
}

void silu_mul(const float* u, const float* v, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, load(u + i) * sigmoid(load(u + i)) * load(v + i));
  for (; i < count; ++i) y[i] = u[i] * sigmoid(broadcast(u[i]))[0] * v[i];
}

}  // namespace

extern const LinearKernels kLinearKernels{layout, pack, few_scratch, few, many_scratch, many, silu_mul};

}  // namespace sala::linear::SALA_SIMD_LEVEL
