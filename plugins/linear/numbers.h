// Single numbers of every stored type in float32. For what is no vector's work, and as the meaning of the vectors.
//
// Functions are static: sources that are compiled once per SIMD level must not share a definition.

#pragma once

#include <cstdint>

#include "linear/linear_cpu.h"

namespace sala::linear {

static inline float float_of_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }

static inline float from_bfloat16(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

static inline float from_float16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const uint32_t magnitude = bits & 0x7FFFU;
  if (magnitude >= 0x7C00U) return float_of_bits(sign | 0x7F800000U | (magnitude & 0x3FFU) << 13);
  if (magnitude < 0x400U) {  // 2^-24 is the smallest number
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign == 0 ? value : -value;
  }
  return float_of_bits(sign | ((magnitude << 13) + (112U << 23)));
}

/// e4m3fn: no infinities, NaN where all bits but the sign are set.
static inline float from_float8(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7FU;
  float value = float_of_bits((magnitude << 20) + (120U << 23));
  if (magnitude < 8) value = static_cast<float>(magnitude) * 0x1p-9f;
  if (magnitude == 0x7F) value = float_of_bits(0x7FC00000U);
  return (bits & 0x80U) == 0 ? value : -value;
}

/// e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
static inline float from_float4(uint32_t nibble) {
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float value = kMagnitudes[nibble & 7U];
  return (nibble & 8U) == 0 ? value : -value;
}

/// e8m0: the exponent of a power of two, and NaN where all bits are set.
static inline float from_e8m0(uint8_t bits) {
  if (bits == 0) return 0x1p-127f;
  return float_of_bits(bits == 0xFF ? 0x7FC00000U : static_cast<uint32_t>(bits) << 23);
}

template <class T>
static inline T stored(const void* from, int64_t index) {
  T value;
  __builtin_memcpy(&value, static_cast<const char*>(from) + index * static_cast<int64_t>(sizeof(T)), sizeof value);
  return value;
}

/// Number `index` of a row of codes, without its scale.
static inline float number_at(WeightKind kind, const void* codes, int64_t index) {
  const auto nibble = [&] { return static_cast<uint32_t>(stored<uint8_t>(codes, index / 2)) >> (index % 2 * 4) & 15U; };
  switch (kind) {
    case WeightKind::kFloat32:
      return stored<float>(codes, index);
    case WeightKind::kBFloat16:
      return from_bfloat16(stored<uint16_t>(codes, index));
    case WeightKind::kFloat16:
      return from_float16(stored<uint16_t>(codes, index));
    case WeightKind::kFloat8:
    case WeightKind::kMxfp8:
      return from_float8(stored<uint8_t>(codes, index));
    case WeightKind::kInt8:
      return static_cast<float>(stored<int8_t>(codes, index));
    case WeightKind::kInt4:
      return static_cast<float>(static_cast<int32_t>(nibble()) - 8);
    case WeightKind::kNvfp4:
      return from_float4(nibble());
  }
  return 0.0f;
}

static inline int64_t scale_bytes(ScaleType type) {
  switch (type) {
    case ScaleType::kNone:
      return 0;
    case ScaleType::kFloat32:
      return 4;
    case ScaleType::kBFloat16:
    case ScaleType::kFloat16:
      return 2;
    case ScaleType::kFloat8:
    case ScaleType::kE8m0:
      return 1;
  }
  return 0;
}

static inline float scale_at(ScaleType type, const void* scales, int64_t index) {
  switch (type) {
    case ScaleType::kNone:
      return 1.0f;
    case ScaleType::kFloat32:
      return stored<float>(scales, index);
    case ScaleType::kBFloat16:
      return from_bfloat16(stored<uint16_t>(scales, index));
    case ScaleType::kFloat16:
      return from_float16(stored<uint16_t>(scales, index));
    case ScaleType::kFloat8:
      return from_float8(stored<uint8_t>(scales, index));
    case ScaleType::kE8m0:
      return from_e8m0(stored<uint8_t>(scales, index));
  }
  return 1.0f;
}

}  // namespace sala::linear
