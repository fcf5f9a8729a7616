#include "quantized_weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

namespace sala {

namespace {

constexpr int64_t kStagingBytes = int64_t{4} << 20;

using Table = std::array<float, 256>;

float from_e4m3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return code & 128 ? -magnitude : magnitude;
}

float from_e2m1(int code) {
  constexpr std::array<float, 8> kMagnitudes{0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float magnitude = kMagnitudes[static_cast<size_t>(code & 7)];
  return code & 8 ? -magnitude : magnitude;
}

/// The number of each code.
Table table_of(Codes codes) {
  Table table{};
  for (int code = 0; code < 256; ++code) {
    float& value = table[static_cast<size_t>(code)];
    switch (codes) {
      case Codes::kFp8:
        value = from_e4m3(code);
        break;
      case Codes::kInt8:
        value = static_cast<float>(code < 128 ? code : code - 256);
        break;
      case Codes::kInt4:
        value = static_cast<float>((code & 15) - 8);
        break;
      case Codes::kNvfp4:
        value = from_e2m1(code);
        break;
    }
  }
  return table;
}

int64_t codes_per_byte(Codes codes) { return codes == Codes::kInt4 || codes == Codes::kNvfp4 ? 2 : 1; }

int64_t scale_element_bytes(Codes codes) {
  switch (codes) {
    case Codes::kInt4:
      return 2;
    case Codes::kNvfp4:
      return 1;
    default:
      return 4;
  }
}

Expected<std::vector<float>> load_scales(const File& file, const Dequantization& how) {
  std::vector<uint8_t> raw(static_cast<size_t>(how.scale_bytes));
  SALA_RETURN_IF_ERROR(file.read(how.scale_offset, raw.data(), how.scale_bytes));
  const int64_t size = scale_element_bytes(how.codes);
  std::vector<float> scales(raw.size() / static_cast<size_t>(size));
  for (size_t i = 0; i < scales.size(); ++i) {
    uint32_t bits = 0;
    for (int64_t byte = 0; byte < size; ++byte) {
      bits |= static_cast<uint32_t>(raw[i * static_cast<size_t>(size) + static_cast<size_t>(byte)]) << (8 * byte);
    }
    const float scale = size == 1   ? from_e4m3(static_cast<int>(bits))
                        : size == 2 ? std::bit_cast<float>(bits << 16)
                                    : std::bit_cast<float>(bits);
    scales[i] = scale * how.global_scale;
  }
  return scales;
}

}  // namespace

int64_t quantized_elements(const WeightPart& part) {
  const Dequantization& how = *part.dequantization;
  const int64_t row_bytes = how.columns / codes_per_byte(how.codes);
  if (how.columns % codes_per_byte(how.codes) != 0 || part.bytes % row_bytes != 0) return -1;
  const int64_t rows = part.bytes / row_bytes;
  if (rows % how.block_rows != 0 || how.columns % how.block_columns != 0) return -1;
  // Neither product overflows: both factors are at most the elements of a weight, which is a file's bytes or so.
  if (how.scale_bytes != how.block_rows * how.block_columns * scale_element_bytes(how.codes)) return -1;
  return rows * how.columns;
}

Status load_quantized_part(const File& codes, const File& scales, const WeightPart& part, float* to) {
  const Dequantization& how = *part.dequantization;
  const auto loaded = load_scales(scales, how);
  if (!loaded) return loaded.error();
  const Table table = table_of(how.codes);
  const bool nibbles = codes_per_byte(how.codes) == 2;
  const int64_t row_bytes = how.columns / codes_per_byte(how.codes);
  const int64_t rows = part.bytes / row_bytes, rows_per_scale = rows / how.block_rows;
  const int64_t width = how.columns / how.block_columns;
  const int64_t rows_at_once = std::max<int64_t>(1, kStagingBytes / row_bytes);
  std::vector<uint8_t> staging(static_cast<size_t>(std::min(rows, rows_at_once) * row_bytes));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t staged = row % rows_at_once;
    if (staged == 0) {
      const int64_t count = std::min(rows_at_once, rows - row);
      SALA_RETURN_IF_ERROR(codes.read(part.offset + row * row_bytes, staging.data(), count * row_bytes));
    }
    const uint8_t* from = staging.data() + staged * row_bytes;
    const float* scale = loaded->data() + row / rows_per_scale * how.block_columns;
    for (int64_t column = 0; column < how.columns; ++column) {
      const int byte = from[nibbles ? column / 2 : column];
      const int code = !nibbles ? byte : column % 2 == 0 ? byte & 15 : byte >> 4;
      *to++ = table[static_cast<size_t>(code)] * scale[column / width];
    }
  }
  return success();
}

}  // namespace sala
