#include "base/number_formats.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace sala::test {
namespace {

/// The number of 16 bits with so many bits of mantissa, by its definition.
double value_of(uint16_t bits, int mantissa_bits) {
  const int exponent_bits = 15 - mantissa_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  }
  return sign * (exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                               : std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits));
}

/// What is nearest to a number, of two equally near the even one: by search.
uint16_t nearest(float number, int mantissa_bits) {
  const double magnitude = std::fabs(static_cast<double>(number));
  const uint16_t sign = std::signbit(number) ? 0x8000 : 0;
  const uint16_t infinity = static_cast<uint16_t>(((1 << (15 - mantissa_bits)) - 1) << mantissa_bits);
  uint16_t low = 0, high = infinity;  // value_of(low) <= magnitude; high is beyond it or infinite
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (value_of(middle, mantissa_bits) <= magnitude ? low : high) = middle;
  }
  // Rounding treats infinity as the number that would follow the largest.
  const double step = value_of(low, mantissa_bits) - value_of(static_cast<uint16_t>(low - (low > 0)), mantissa_bits);
  const double above = high == infinity ? value_of(low, mantissa_bits) + step : value_of(high, mantissa_bits);
  const double to_low = magnitude - value_of(low, mantissa_bits), to_high = above - magnitude;
  return sign | (to_low < to_high || (to_low == to_high && low % 2 == 0) ? low : high);
}

uint16_t converted(float number, DType to) {
  uint16_t result = 0;
  convert(&number, DType::kFloat32, &result, to, 1);
  return result;
}

TEST(NumberFormats, EveryNumberOf16BitsIsKeptInFp32) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  for (const auto& [dtype, mantissa_bits] : {std::pair(DType::kFloat16, 10), std::pair(DType::kBFloat16, 7)}) {
    std::vector<float> wide(all.size());
    std::vector<uint16_t> back(all.size());
    convert(all.data(), dtype, wide.data(), DType::kFloat32, static_cast<int64_t>(all.size()));
    convert(wide.data(), DType::kFloat32, back.data(), dtype, static_cast<int64_t>(all.size()));
    for (size_t i = 0; i < all.size(); ++i) {
      const double expected = value_of(all[i], mantissa_bits);
      if (std::isnan(expected)) {
        EXPECT_TRUE(std::isnan(wide[i]) && std::isnan(value_of(back[i], mantissa_bits))) << i;
      } else {
        ASSERT_EQ(static_cast<double>(wide[i]), expected) << i;
        ASSERT_EQ(back[i], all[i]) << i;
      }
    }
  }
}

TEST(NumberFormats, RoundToNearestEven) {
  std::vector<float> numbers = {0.0f,      -0.0f,    65504.0f, 65519.996f,   65520.0f,
                                1e9f,      0x1p-24f, 0x1p-25f, 0x3p-25f,     0x1.8p-14f,
                                0x1p-149f, 3.3e38f,  3.4e38f,  0x1.ffcp-15f, 0x1.ffep-15f};
  std::mt19937 random(7);
  for (int i = 0; i < 100'000; ++i) {
    // Numbers of all sizes, and those halfway between two of the narrow type.
    const uint32_t bits = static_cast<uint32_t>(random());
    for (const uint32_t number : {bits, bits & 0xfffff000u, bits & 0xffff8000u}) {
      if ((number & 0x7f800000u) != 0x7f800000u) numbers.push_back(std::bit_cast<float>(number));
    }
  }
  for (const float number : numbers) {
    ASSERT_EQ(converted(number, DType::kFloat16), nearest(number, 10)) << std::hexfloat << number;
    ASSERT_EQ(converted(number, DType::kBFloat16), nearest(number, 7)) << std::hexfloat << number;
  }
}

TEST(NumberFormats, NotANumberStaysNone) {
  // The last of these has its only bits where narrow types have none.
  for (const uint32_t bits : {0x7fc00000u, 0xffc00000u, 0x7f800001u}) {
    const float number = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(value_of(converted(number, DType::kFloat16), 10))) << bits;
    EXPECT_TRUE(std::isnan(value_of(converted(number, DType::kBFloat16), 7))) << bits;
  }
  EXPECT_EQ(converted(-std::numeric_limits<float>::infinity(), DType::kFloat16), 0xfc00);
  EXPECT_EQ(converted(std::numeric_limits<float>::infinity(), DType::kBFloat16), 0x7f80);
}

TEST(NumberFormats, Bf16BecomesFp16) {
  const uint16_t from[] = {0x3f80, 0xc020, 0x4780, 0x3380, 0x7fc1};  // 1, -2.5, 65536, 2^-24, NaN
  uint16_t to[5];
  convert(from, DType::kBFloat16, to, DType::kFloat16, 5);
  EXPECT_EQ(to[0], 0x3c00);
  EXPECT_EQ(to[1], 0xc100);
  EXPECT_EQ(to[2], 0x7c00);
  EXPECT_EQ(to[3], 0x0001);
  EXPECT_TRUE(std::isnan(value_of(to[4], 10)));
}

}  // namespace
}  // namespace sala::test
