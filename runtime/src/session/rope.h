// Rows of the step input `rope_cos_sin`.

#pragma once

#include <cstdint>
#include <span>

namespace sala {

/// Fills `rows` [tokens, 2 * inv_freq.size()] for positions first, first + 1, ...: cosines, then sines, of
/// fp32(position) * inv_freq rounded to fp32. The reference rounds that product, and models were trained with it; cos
/// and sin of it are then taken in fp64 and rounded.
void rope_cos_sin(int64_t first_position, std::span<const float> inv_freq, std::span<float> rows);

}  // namespace sala
