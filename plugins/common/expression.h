// The functions of sala_export/ops/common/expr.py, for expressions pasted into generated tables.

#pragma once

#include <cstdint>

namespace sala {

/// Floor of a / b; b > 0.
constexpr int64_t fdiv(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

/// Ceiling of a / b; b > 0.
constexpr int64_t cdiv(int64_t a, int64_t b) { return -fdiv(-a, b); }

constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/// 1 or 0.
constexpr int64_t is_power_of_two(int64_t a) { return a >= 1 && (a & (a - 1)) == 0 ? 1 : 0; }

static_assert(fdiv(-1, 4) == -1 && cdiv(-1, 4) == 0 && fdiv(7, 4) == 1 && cdiv(7, 4) == 2);
static_assert(is_power_of_two(1) && is_power_of_two(32) && !is_power_of_two(0) && !is_power_of_two(24));

}  // namespace sala
