#include "weights/quantized_weights.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/number_formats.h"

namespace sala {

namespace {

/// Blocks along the rows and along the columns.
std::optional<std::pair<int64_t, int64_t>> blocks_of(const Shape& scales) {
  if (scales.size() > 2) return std::nullopt;
  const int64_t rows = scales.empty() ? 1 : scales[0];
  const int64_t columns = scales.size() < 2 ? 1 : scales[1];
  if (rows < 1 || columns < 1) return std::nullopt;
  return std::pair(rows, columns);
}

}  // namespace

int64_t quantized_elements(const Dequantization& how, const StoredTensor& codes, const StoredTensor& scales) {
  const CodeFormat& format = format_of(how.codes);
  const int64_t row_bytes = how.columns / format.per_byte;
  if (how.columns % format.per_byte != 0 || codes.bytes % row_bytes != 0) return -1;
  const int64_t rows = codes.bytes / row_bytes;
  const auto blocks = blocks_of(scales.shape);
  if (!blocks || rows % blocks->first != 0 || how.columns % blocks->second != 0) return -1;
  const bool is_fp8 = scales.dtype == DType::kFloat8E4M3FN;
  if (format.has_fp8_scales ? !is_fp8 : !is_convertible(scales.dtype)) return -1;
  return elements_of({rows, how.columns});
}

Dequantizer::Dequantizer(const Dequantization& how, const StoredTensor& codes, const StoredTensor& scales,
                         std::string bytes)
    : format_(format_of(how.codes)),
      scale_type_(scales.dtype),
      global_scale_(how.global_scale),
      columns_(how.columns),
      scales_(std::move(bytes)) {
  const auto blocks = *blocks_of(scales.shape);
  rows_per_scale_ = codes.bytes / (columns_ / format_.per_byte) / blocks.first;
  columns_per_scale_ = columns_ / blocks.second;
  row_scales_.resize(static_cast<size_t>(blocks.second));
  for (int code = 0; code < 256; ++code) table_[static_cast<size_t>(code)] = format_.number(code);
}

void Dequantizer::begin_row() {
  const size_t count = row_scales_.size();
  const char* from = scales_.data() + bytes_of(scale_type_, row_ / rows_per_scale_ * static_cast<int64_t>(count));
  if (scale_type_ == DType::kFloat8E4M3FN) {
    for (size_t i = 0; i < count; ++i) row_scales_[i] = from_e4m3(static_cast<uint8_t>(from[i]));
  } else {
    convert(from, scale_type_, row_scales_.data(), DType::kFloat32, static_cast<int64_t>(count));
  }
  for (float& scale : row_scales_) scale *= global_scale_;
}

void Dequantizer::dequantize(const uint8_t* codes, int64_t count, float* to) {
  const bool nibbles = format_.per_byte == 2;
  for (int64_t done = 0; done < count;) {
    if (column_ == 0) begin_row();
    const int64_t block = column_ / columns_per_scale_;
    const int64_t end = std::min(count, done + (block + 1) * columns_per_scale_ - column_);
    const float scale = row_scales_[static_cast<size_t>(block)];
    column_ += end - done;
    if (nibbles) {
      for (auto i = static_cast<uint64_t>(done); i < static_cast<uint64_t>(end); ++i) {
        to[i] = table_[static_cast<size_t>(codes[i / 2] >> (i % 2 * 4) & 15)] * scale;
      }
    } else {
      for (int64_t i = done; i < end; ++i) to[i] = table_[codes[i]] * scale;
    }
    done = end;
    if (column_ == columns_) {
      column_ = 0;
      ++row_;
    }
  }
}

}  // namespace sala
