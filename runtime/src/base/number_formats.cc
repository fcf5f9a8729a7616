#include "base/number_formats.h"

#include <algorithm>
#include <bit>

namespace sala {

namespace {

constexpr uint32_t kInfinity32 = 0x7f800000u;
constexpr uint32_t kMagnitude32 = 0x7fffffffu;

/// By masks: without branches a loop over numbers becomes vector code, several times as fast.
uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = -static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

struct Float32 {
  using Stored = float;
  static float decode(float value) { return value; }
  static float encode(float value) { return value; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static float decode(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  static uint16_t encode(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const bool is_nan = (bits & kMagnitude32) > kInfinity32;
    // A NaN whose upper half alone would be infinity is made quiet.
    const uint32_t rounded = is_nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u);
    return static_cast<uint16_t>(rounded >> 16);
  }
};

struct Float16 {
  using Stored = uint16_t;
  static float decode(uint16_t bits) {
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
  static uint16_t encode(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t magnitude = bits & kMagnitude32;
    return static_cast<uint16_t>((bits >> 16 & 0x8000u) | encode_magnitude(magnitude));
  }

 private:
  static uint32_t encode_magnitude(uint32_t bits) {
    constexpr uint32_t kLeastNormal = 0x38800000u;  // 2^-14
    constexpr uint32_t kInfinity16 = 0x7c00u;
    const uint32_t nan = kInfinity16 | 0x200u | (bits >> 13 & 0x3ffu);
    // Neighbours of 0.5f lie 2^-24 apart, as subnormal numbers of fp16 do: the sum rounds to one of them.
    const uint32_t subnormal =
        std::bit_cast<uint32_t>(std::bit_cast<float>(bits) + 0.5f) - std::bit_cast<uint32_t>(0.5f);
    const uint32_t rounded = bits + 0xfffu + (bits >> 13 & 1u);
    const uint32_t normal = (rounded - (112u << 23)) >> 13;
    const uint32_t finite = choose(bits < kLeastNormal, subnormal, choose(normal < kInfinity16, normal, kInfinity16));
    return choose(bits > kInfinity32, nan, finite);
  }
};

template <class Use>
void with_format(DType dtype, Use use) {
  if (dtype == DType::kBFloat16) return use(BFloat16());
  if (dtype == DType::kFloat16) return use(Float16());
  use(Float32());
}

}  // namespace

bool is_convertible(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16;
}

void convert(const void* from, DType from_type, void* to, DType to_type, int64_t count) {
  with_format(from_type, [&](auto source) {
    with_format(to_type, [&](auto target) {
      const auto* begin = static_cast<const typename decltype(source)::Stored*>(from);
      auto* results = static_cast<typename decltype(target)::Stored*>(to);
      std::transform(begin, begin + count, results,
                     [](auto stored) { return decltype(target)::encode(decltype(source)::decode(stored)); });
    });
  });
}

}  // namespace sala
