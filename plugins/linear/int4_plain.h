// The rule of fast products of int4 weights, without any speed: inputs as int8 codes, integer products.

#pragma once

#include "linear/linear_cpu.h"

namespace sala::linear {

/// A call of kInt4 that is not exact. Inputs of one token and one group of columns become codes of int8: the largest
/// magnitude is code 127. Groups are those of the weight's scales, cut where they are longer than 128 columns.
Status int4_plain(const LinearCall& call, const cpu::ParallelFor& parallel, cpu::SimdLevel level);

}  // namespace sala::linear
