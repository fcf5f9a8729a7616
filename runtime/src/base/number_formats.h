// Numbers in the types of weights.

#pragma once

#include <cstdint>

#include "sala/tensor.h"

namespace sala {

/// Whether numbers of this type can be converted: fp32, fp16, bf16.
bool is_convertible(DType dtype);

/// Converts `count` numbers of one convertible type to another, rounding to nearest even; NaN stays NaN, what exceeds
/// the range becomes infinite. Both at multiples of their size.
void convert(const void* from, DType from_type, void* to, DType to_type, int64_t count);

}  // namespace sala
