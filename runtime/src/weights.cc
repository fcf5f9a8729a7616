#include "weights.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>

#include "file.h"
#include "quantized_weights.h"

namespace sala {

namespace {

constexpr int64_t kStagingBytes = int64_t{4} << 20;

float from_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

float from_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t widened = exponent == 0x1fu ? 0xffu : exponent + 112;
  return std::bit_cast<float>(sign | widened << 23 | mantissa << 13);
}

void widen(const std::vector<uint16_t>& from, int64_t count, DType dtype, float* to) {
  if (dtype == DType::kBFloat16) {
    std::transform(from.begin(), from.begin() + count, to, from_bfloat16);
  } else {
    std::transform(from.begin(), from.begin() + count, to, from_float16);
  }
}

bool convertible(DType from, DType to) {
  return from == to || (to == DType::kFloat32 && (from == DType::kBFloat16 || from == DType::kFloat16));
}

Status load_part(const File& file, const WeightPart& part, DType target, char* to) {
  if (part.dtype == target) return file.read(part.offset, to, part.bytes);
  std::vector<uint16_t> staging(static_cast<size_t>(std::min(kStagingBytes, part.bytes)) / sizeof(uint16_t));
  for (int64_t done = 0; done < part.bytes;) {
    const int64_t bytes = std::min(kStagingBytes, part.bytes - done);
    const int64_t count = bytes / static_cast<int64_t>(sizeof(uint16_t));
    SALA_RETURN_IF_ERROR(file.read(part.offset + done, staging.data(), bytes));
    widen(staging, count, part.dtype, reinterpret_cast<float*>(to));
    to += count * static_cast<int64_t>(sizeof(float));
    done += bytes;
  }
  return success();
}

/// Bytes of the weight in memory.
Expected<int64_t> check_parts(const WeightInput& weight, const Shape& shape) {
  const DType target = weight.spec.dtype;
  const auto damaged = [&](const auto&... parts) {
    return error(ErrorCode::kBundleDamaged, kManifestFile, ": weight ", weight.spec.name, " ", parts...,
                 " (build the bundle again)");
  };
  const int64_t elements = elements_of(shape);
  if (elements < 0 || elements > INT64_MAX / bytes_of(target)) return damaged("has no usable shape ", to_string(shape));
  int64_t stored = 0;
  for (const WeightPart& part : weight.parts) {
    if (part.dequantization) {
      const int64_t count = target == DType::kFloat32 ? quantized_elements(part) : -1;
      if (count < 0) return damaged("has a quantised part whose codes and scales do not fit together");
      stored += count;
      continue;
    }
    if (!convertible(part.dtype, target)) {
      return damaged("is ", name_of(target), " and cannot be made from ", name_of(part.dtype));
    }
    if (part.bytes % bytes_of(part.dtype) != 0) return damaged("has a part that ends within an element");
    stored += part.bytes / bytes_of(part.dtype);
  }
  if (stored != elements) return damaged("has ", stored, " stored elements for the shape ", to_string(shape));
  return elements * bytes_of(target);
}

}  // namespace

Expected<std::vector<Weight>> load_weights(const std::filesystem::path& bundle, const Manifest& manifest) {
  std::map<std::string, File> files;
  const auto open = [&](const std::string& path) -> Expected<const File*> {
    auto file = files.find(path);
    if (file == files.end()) {
      auto opened = File::open(bundle / path, ErrorCode::kBundleDamaged);
      if (!opened) return opened.error();
      file = files.emplace(path, *std::move(opened)).first;
    }
    return &file->second;
  };
  std::vector<Weight> result;
  for (const WeightInput& input : manifest.cpu.weights) {
    Weight weight{input.spec, input.spec.bound({}), {}};
    const auto bytes = check_parts(input, weight.shape);
    if (!bytes) return bytes.error();
    auto buffer = host_memory().allocate(*bytes);
    if (!buffer) return buffer.error();
    weight.buffer = *std::move(buffer);
    char* to = static_cast<char*>(weight.buffer.data());
    for (const WeightPart& part : input.parts) {
      const auto file = open(part.file);
      if (!file) return file.error();
      if (part.dequantization) {
        const auto scales = open(part.dequantization->scale_file);
        if (!scales) return scales.error();
        SALA_RETURN_IF_ERROR(load_quantized_part(**file, **scales, part, reinterpret_cast<float*>(to)));
        to += quantized_elements(part) * static_cast<int64_t>(sizeof(float));
        continue;
      }
      SALA_RETURN_IF_ERROR(load_part(**file, part, weight.spec.dtype, to));
      to += part.bytes / bytes_of(part.dtype) * bytes_of(weight.spec.dtype);
    }
    result.push_back(std::move(weight));
  }
  return result;
}

}  // namespace sala
