#include "session/rope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace sala::test {
namespace {

TEST(Rope, IsTheAccurateCosineAndSineOfTheRoundedProduct) {
  const std::vector<float> inv_freq = {1.0f, 0.74989421f, 0.0133352143f, 1.15478199e-4f};
  for (const int64_t first :
       {int64_t{0}, int64_t{1}, int64_t{9001}, int64_t{65535}, int64_t{1048573}, int64_t{16777211}}) {
    std::vector<float> rows(5 * 8);
    rope_cos_sin(first, inv_freq, rows);
    for (int64_t t = 0; t < 5; ++t) {
      for (size_t i = 0; i < 4; ++i) {
        volatile float rounded = static_cast<float>(first + t) * inv_freq[i];
        const long double angle = rounded;
        EXPECT_EQ(rows[static_cast<size_t>(t) * 8 + i], static_cast<float>(std::cos(angle)));
        EXPECT_EQ(rows[static_cast<size_t>(t) * 8 + 4 + i], static_cast<float>(std::sin(angle)));
      }
    }
  }
}

TEST(Rope, DoesNotUseTheExactAngle) {
  // Products near 2^20 keep 24 of their up to 44 bits: some row of 64 is far off the exact angle.
  const std::vector<float> inv_freq = {0.74989421f};
  std::vector<float> rows(2 * 64);
  rope_cos_sin(1048573, inv_freq, rows);
  double largest = 0;
  for (size_t t = 0; t < 64; ++t) {
    const double exact = (1048573.0 + static_cast<double>(t)) * static_cast<double>(inv_freq[0]);
    largest = std::max(largest, std::abs(static_cast<double>(rows[2 * t]) - std::cos(exact)));
  }
  EXPECT_GT(largest, 5e-3);
}

}  // namespace
}  // namespace sala::test
