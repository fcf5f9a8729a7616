#include "linear/linear_simd.h"

#include "linear/few_tokens_simd.h"
#include "linear/many_tokens_simd.h"
#include "linear/packing_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

void pack(const Product& product, const Inputs& inputs, int64_t tile_tokens, float* tile) {
  with_format(product, [&](auto format, ScaleUse) { pack_as<decltype(format)>(product, inputs, tile_tokens, tile); });
}

}  // namespace

extern const LinearKernels kLinearKernels{
    {slots_of, pack, few_scratch, few}, {layout, pack, many_scratch, many}, silu_mul};

}  // namespace sala::linear::SALA_SIMD_LEVEL
