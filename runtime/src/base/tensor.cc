#include "sala/tensor.h"

namespace sala {

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kInt32:
      return "int32";
    case DType::kInt64:
      return "int64";
    case DType::kFloat8E4M3FN:
      return "float8_e4m3fn";
    case DType::kFloat4E2M1FN:
      return "float4_e2m1fn";
    case DType::kInt8:
      return "int8";
    case DType::kUInt8:
      return "uint8";
  }
  return "unknown";
}

namespace {

int64_t bits_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat4E2M1FN:
      return 4;
    case DType::kFloat8E4M3FN:
    case DType::kInt8:
    case DType::kUInt8:
      return 8;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 16;
    case DType::kFloat32:
    case DType::kInt32:
      return 32;
    case DType::kInt64:
      return 64;
  }
  return 0;
}

}  // namespace

int64_t bytes_of(DType dtype, int64_t elements) {
  const int64_t bits = bits_of(dtype);
  if (elements < 0) return -1;
  if (bits < 8) return elements / 2 + elements % 2;
  int64_t bytes = 0;
  return __builtin_mul_overflow(elements, bits / 8, &bytes) ? -1 : bytes;
}

Shape TensorSpec::bound(const SymbolSizes& sizes) const {
  Shape result;
  for (const Extent& extent : shape) {
    const auto found = sizes.find(extent.symbol);
    result.push_back(extent.symbol.empty() ? extent.value : found == sizes.end() ? -1 : found->second);
  }
  return result;
}

int64_t elements_of(const Shape& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(count, extent, &count)) return -1;
  }
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (const int64_t extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

}  // namespace sala
