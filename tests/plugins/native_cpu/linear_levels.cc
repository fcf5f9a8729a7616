// Computes products of every stored format at every level that this machine runs, and compares them with sums in
// double of numbers that are decoded here, from the descriptions of the formats. Prints the levels.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "linear/linear_cpu.h"

namespace {

using sala::cpu::SimdLevel;
using sala::linear::ScaleType;
using sala::linear::WeightKind;
using Numbers = std::vector<double>;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kSteps = 0x1p-20;  // error of a sum, relative to the sum of the magnitudes of its products
constexpr WeightKind kKinds[] = {WeightKind::kFloat32, WeightKind::kBFloat16, WeightKind::kFloat16, WeightKind::kFloat8,
                                 WeightKind::kMxfp8,   WeightKind::kInt8,     WeightKind::kInt4,    WeightKind::kNvfp4};
constexpr const char* kNames[] = {"float32", "bfloat16", "float16", "float8", "mxfp8", "int8", "int4", "nvfp4"};

std::mt19937 generator(1);

int64_t draw(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

const char* name_of(WeightKind kind) { return kNames[static_cast<int>(kind)]; }

bool is_one_of(WeightKind kind, std::initializer_list<WeightKind> kinds) {
  return std::find(kinds.begin(), kinds.end(), kind) != kinds.end();
}

// --- What codes stand for ---

/// A number of so many bits of exponent and fraction, as IEEE 754 has them.
double decode(uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto exponent = static_cast<int>(bits >> fraction_bits & ((1U << exponent_bits) - 1));
  const auto fraction = static_cast<double>(bits & ((1U << fraction_bits) - 1));
  const double unit = std::ldexp(1.0, fraction_bits);
  const double sign = (bits >> (exponent_bits + fraction_bits) & 1) == 0 ? 1.0 : -1.0;
  if (exponent_bits > 4 && exponent == (1 << exponent_bits) - 1) return fraction == 0 ? sign * INFINITY : kNan;
  if (exponent == 0) return sign * std::ldexp(fraction / unit, 1 - bias);
  return sign * std::ldexp(1 + fraction / unit, exponent - bias);
}

double decode_float8(uint32_t bits) { return (bits & 0x7F) == 0x7F ? kNan : decode(bits, 4, 3); }

template <class T>
T stored(const uint8_t* from, int64_t index) {
  T value;
  std::memcpy(&value, from + index * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}

double number_at(WeightKind kind, const uint8_t* row, int64_t k) {
  const auto nibble = [&] { return static_cast<uint32_t>(row[k / 2] >> (k % 2 * 4)) & 15U; };
  switch (kind) {
    case WeightKind::kFloat32:
      return static_cast<double>(stored<float>(row, k));
    case WeightKind::kBFloat16:
      return decode(stored<uint16_t>(row, k), 8, 7);
    case WeightKind::kFloat16:
      return decode(stored<uint16_t>(row, k), 5, 10);
    case WeightKind::kFloat8:
    case WeightKind::kMxfp8:
      return decode_float8(row[k]);
    case WeightKind::kInt8:
      return static_cast<int8_t>(row[k]);
    case WeightKind::kInt4:
      return static_cast<double>(nibble()) - 8;
    case WeightKind::kNvfp4:
      return decode(nibble(), 2, 1);
  }
  return kNan;
}

// --- What inputs are rounded to ---

/// The nearest multiple of the last of `digits` bits below the first, the even one of two.
double rounded(double value, int digits, int least_exponent) {
  if (value == 0) return value;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(value), least_exponent) - digits);
  return std::nearbyint(value / unit) * unit;
}

void round_mx_block(double* x) {
  double largest = 0;
  for (int64_t i = 0; i < sala::linear::kMxBlock; ++i) largest = std::max(largest, std::abs(x[i]));
  int exponent = -127;
  while (std::ldexp(448.0, exponent) < largest) ++exponent;
  for (int64_t i = 0; i < sala::linear::kMxBlock; ++i) {
    x[i] = std::ldexp(rounded(std::ldexp(x[i], -exponent), 3, -6), exponent);
  }
}

/// Numbers of int8 with one scale, which the rule has in float32.
void round_group(double* x, int64_t count) {
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(x[i]));
  const float scale = static_cast<float>(largest) / 127.0f;
  for (int64_t i = 0; i < count; ++i) x[i] = std::nearbyint(static_cast<float>(x[i]) / scale) * scale;
}

// --- Products ---

struct Case {
  WeightKind kind;
  bool exact;
  int64_t tokens;
  int64_t rows;
  int64_t columns;
  int64_t shared;  // columns of a scale
  float global_scale;
  std::vector<float> x;
  std::vector<uint8_t> codes;
  std::vector<uint8_t> scales;

  ScaleType scale_type() const {
    if (kind == WeightKind::kMxfp8) return ScaleType::kE8m0;
    if (kind == WeightKind::kNvfp4) return ScaleType::kFloat8;
    return scales.empty() ? ScaleType::kNone : ScaleType::kBFloat16;
  }

  double scale_at(int64_t row, int64_t column) const {
    const int64_t index = row * (columns / shared) + column / shared;
    switch (scale_type()) {
      case ScaleType::kE8m0:
        return std::ldexp(1.0, scales[static_cast<size_t>(index)] - 127);
      case ScaleType::kFloat8:
        return decode_float8(scales[static_cast<size_t>(index)]) * static_cast<double>(global_scale);
      case ScaleType::kBFloat16:
        return decode(stored<uint16_t>(scales.data(), index), 8, 7);
      default:
        return 1;
    }
  }

  Numbers inputs() const {
    Numbers numbers(x.begin(), x.end());
    if (kind == WeightKind::kMxfp8) {
      for (size_t i = 0; i < numbers.size(); i += sala::linear::kMxBlock) round_mx_block(&numbers[i]);
    } else if (kind == WeightKind::kInt4 && !exact) {
      int64_t group = std::min<int64_t>(shared, 128);
      while (shared % group != 0) --group;
      for (size_t i = 0; i < numbers.size(); i += static_cast<size_t>(group)) round_group(&numbers[i], group);
    } else if (!exact && kind != WeightKind::kFloat32 && kind != WeightKind::kFloat16) {
      for (double& number : numbers) number = rounded(number, 7, -126);
    }
    return numbers;
  }

  Numbers weights() const {
    Numbers numbers(static_cast<size_t>(rows * columns));
    for (int64_t r = 0; r < rows; ++r) {
      const uint8_t* row = codes.data() + r * sala::linear::row_bytes(kind, columns);
      for (int64_t k = 0; k < columns; ++k) {
        numbers[static_cast<size_t>(r * columns + k)] = number_at(kind, row, k) * scale_at(r, k);
      }
    }
    return numbers;
  }
};

sala::cpu::ParallelFor one_thread() {
  const auto run = [](void*, sala::cpu::ParallelFor::Task task, size_t count, void* data) {
    for (size_t i = 0; i < count; ++i) task(data, i);
  };
  return {run, nullptr};
}

std::vector<float> product_of(const Case& c, SimdLevel level) {
  const bool has_scales = c.scale_type() != ScaleType::kNone;
  const std::vector<sala::linear::StoredWeight> weights(
      1, {c.rows, c.codes.data(), c.scales.data(), c.scale_type(), has_scales ? c.rows : 1, c.columns / c.shared});
  std::vector<float> y(static_cast<size_t>(c.tokens * c.rows));
  const auto status = sala::linear::linear_cpu(
      {c.x.data(), c.tokens, c.columns, weights, c.kind, c.global_scale, c.exact, false, y.data()}, one_thread(),
      level);
  if (!status) {
    std::fprintf(stderr, "%s\n", status.error().message.c_str());
    y.clear();
  }
  return y;
}

/// The number of products compared, or -1 after a message.
int64_t check(const Case& c) {
  const Numbers x = c.inputs(), w = c.weights();
  Numbers expected, bounds;
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t r = 0; r < c.rows; ++r) {
      double sum = 0, magnitudes = 0;
      for (int64_t k = 0; k < c.columns; ++k) {
        const double term = x[static_cast<size_t>(t * c.columns + k)] * w[static_cast<size_t>(r * c.columns + k)];
        sum += term;
        magnitudes += std::abs(term);
      }
      // Of int4 the sums are of codes plus 8. Instructions for bfloat16 take numbers below 2^-126 for 0.
      bounds.push_back(magnitudes * kSteps * (c.kind == WeightKind::kInt4 ? 8 : 1) + 0x1p-126);
      expected.push_back(sum);
    }
  }
  for (const SimdLevel level : sala::cpu::kSimdLevels) {
    if (!sala::cpu::runs(level)) continue;
    const std::vector<float> y = product_of(c, level);
    if (y.size() != expected.size()) return -1;
    for (size_t i = 0; i < y.size(); ++i) {
      const auto found = static_cast<double>(y[i]);
      if (std::isnan(expected[i]) ? std::isnan(found)
                                  : found == expected[i] || std::abs(found - expected[i]) <= bounds[i]) {
        continue;
      }
      std::fprintf(stderr, "%s, %s %s, %d tokens, %d rows, %d columns: %g instead of %g at %d\n",
                   sala::cpu::name_of(level), name_of(c.kind), c.exact ? "exact" : "fast", static_cast<int>(c.tokens),
                   static_cast<int>(c.rows), static_cast<int>(c.columns), found, expected[i], static_cast<int>(i));
      return -1;
    }
  }
  return static_cast<int64_t>(expected.size());
}

// --- Cases ---

/// Random weights: numbers of magnitude 0.5 to 1, or any codes but NaN. Scales are near 1.
Case random_case(WeightKind kind, bool exact, int64_t tokens, int64_t rows, int64_t columns, int64_t shared) {
  Case c{kind, exact, tokens, rows, columns, shared, kind == WeightKind::kNvfp4 ? 0.75f : 1.0f, {}, {}, {}};
  std::normal_distribution<float> normal;
  c.x.resize(static_cast<size_t>(tokens * columns));
  for (float& value : c.x) value = normal(generator);
  c.codes.resize(static_cast<size_t>(rows * sala::linear::row_bytes(kind, columns)));
  for (uint8_t& code : c.codes) code = static_cast<uint8_t>(draw(0, 126) | draw(0, 1) << 7);
  const auto with_high_bytes = [&](size_t bytes, uint8_t high) {
    for (size_t i = bytes - 1; i < c.codes.size(); i += bytes)
      c.codes[i] = static_cast<uint8_t>(draw(0, 1) << 7 | high);
  };
  if (kind == WeightKind::kFloat32) with_high_bytes(4, 0x3F);
  if (kind == WeightKind::kBFloat16) with_high_bytes(2, 0x3F);
  if (kind == WeightKind::kFloat16) with_high_bytes(2, 0x38);
  if (is_one_of(kind, {WeightKind::kFloat32, WeightKind::kBFloat16, WeightKind::kFloat16})) return c;
  for (int64_t i = 0; i < rows * (columns / shared); ++i) {
    if (kind == WeightKind::kMxfp8) {
      c.scales.push_back(static_cast<uint8_t>(draw(123, 131)));
    } else if (kind == WeightKind::kNvfp4) {
      c.scales.push_back(static_cast<uint8_t>(draw(0x30, 0x40)));
    } else {
      c.scales.push_back(static_cast<uint8_t>(draw(0, 255)));
      c.scales.push_back(0x3F);
    }
  }
  return c;
}

/// A weight of one column that has all bits of a format, for inputs of 1.
Case every_code(WeightKind kind, bool exact, int64_t tokens) {
  const int64_t bytes = sala::linear::row_bytes(kind, 1), rows = bytes == 1 ? 256 : 65536;
  Case c{kind, exact, tokens, rows, 1, 1, 1.0f, std::vector<float>(static_cast<size_t>(tokens), 1.0f), {}, {}};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t byte = 0; byte < bytes; ++byte) c.codes.push_back(static_cast<uint8_t>(r >> 8 * byte));
    if (bytes == 1) c.scales.insert(c.scales.end(), {0x80, 0x3F});  // 1
  }
  return c;
}

std::vector<Case> cases_of(WeightKind kind, bool exact) {
  std::vector<Case> cases;
  const auto add = [&](int64_t columns, int64_t shared) {
    for (const int64_t rows : {1, 37}) {
      for (const int64_t tokens : {1, 3, 6, 13, 33}) {
        cases.push_back(random_case(kind, exact, tokens, rows, columns, shared));
      }
    }
  };
  if (kind == WeightKind::kMxfp8) {
    for (const int64_t columns : {32, 96, 640}) add(columns, sala::linear::kMxBlock);
  } else if (kind == WeightKind::kInt4) {
    for (const int64_t columns : {8, 104, 640}) add(columns, columns == 640 ? 128 : columns == 104 ? 13 : 8);
  } else if (kind == WeightKind::kNvfp4) {
    for (const int64_t columns : {16, 112, 640}) add(columns, 16);
    add(96, 8);
  } else {
    for (const int64_t columns : {1, 31, 65, 640}) add(columns, columns == 640 ? 128 : columns);
    if (kind != WeightKind::kFloat32) cases.push_back(every_code(kind, exact, 1));
    if (is_one_of(kind, {WeightKind::kFloat8, WeightKind::kInt8})) cases.push_back(every_code(kind, exact, 33));
  }
  return cases;
}

}  // namespace

int main() {
  int64_t products = 0;
  for (const WeightKind kind : kKinds) {
    for (const bool exact : {true, false}) {
      for (const Case& c : cases_of(kind, exact)) {
        const int64_t compared = check(c);
        if (compared < 0) return 1;
        products += compared;
      }
    }
  }
  for (const SimdLevel level : sala::cpu::kSimdLevels) {
    if (sala::cpu::runs(level)) std::printf("%s ", sala::cpu::name_of(level));
  }
  std::printf("%lld\n", static_cast<long long>(products));
  return 0;
}
