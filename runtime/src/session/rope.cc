#include "session/rope.h"

#include <cmath>

namespace sala {

void rope_cos_sin(int64_t first_position, std::span<const float> inv_freq, std::span<float> rows) {
  const size_t half = inv_freq.size();
  const size_t tokens = half == 0 ? 0 : rows.size() / (2 * half);
  for (size_t t = 0; t < tokens; ++t) {
    const float position = static_cast<float>(first_position + static_cast<int64_t>(t));
    float* row = rows.data() + t * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const double angle = position * inv_freq[i];
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
}

}  // namespace sala
