// What the codes of quantised weights are: one row for each precision that has them.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/number_formats.h"
#include "sala/tensor.h"

namespace sala {

/// In the order of `kCodeFormats`.
enum class Codes { kFp8, kInt8, kInt4, kNvfp4 };

struct CodeFormat {
  std::string_view precision;  // its name in bundle.json
  int64_t per_byte;            // codes in a byte: 1, or 2 with the first in the low bits
  bool has_fp8_scales;         // the scales are e4m3, else fp32, bf16 or fp16
  bool is_by_row;              // there is one scale or one for each row, else one for each block of a row
  float (*number)(int code);   // what a code stands for
};

inline constexpr std::array kCodeFormats{
    CodeFormat{"fp8", 1, false, true, from_e4m3},
    CodeFormat{"int8", 1, false, true, from_int8},
    CodeFormat{"int4", 2, false, false, from_int4},
    CodeFormat{"nvfp4", 2, true, false, from_e2m1},
};

inline const CodeFormat& format_of(Codes codes) { return kCodeFormats[static_cast<size_t>(codes)]; }

}  // namespace sala
