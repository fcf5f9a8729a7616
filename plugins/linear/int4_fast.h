// Fast products of int4 weights: inputs become int8 codes, and groups of both are multiplied as integers.

#pragma once

#include "linear/linear_cpu.h"

namespace sala::linear {

/// Serves a call of kInt4 that is not exact.
///
/// Columns are cut into groups: as many as share a scale in every weight, or the largest part of so many that has at
/// most 128. The inputs of a token in a group become codes of int8 with one scale: the largest magnitude / 127. A code
/// is the nearest integer to input / scale, the even one of two. The products of codes are summed as integers. Then
/// y = the sum over groups of (sum of products) * (scale of the weight * scale of the token), in fp32. A group of zeros
/// adds zero. One with a NaN or an infinity makes every y of the token NaN.
Status int4_fast(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::linear
