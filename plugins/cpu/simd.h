// Vectors of float for one SIMD level, and exp2 and sigmoid on them.
//
// Included only by sources that are compiled once per level, with SALA_SIMD_LEVEL naming the level's namespace. Such
// sources must not instantiate templates or inline functions of the standard library: the linker keeps one copy of
// each, and it could be the copy that only some machines can run.

#pragma once

#include <cstdint>

namespace sala::cpu::SALA_SIMD_LEVEL {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 32;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

using Vec = float __attribute__((vector_size(kVectorBytes)));
using IntVec = int32_t __attribute__((vector_size(kVectorBytes)));

inline Vec load(const float* from) {
  Vec value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

inline IntVec load_int(const void* from) {
  IntVec value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vec value) { __builtin_memcpy(to, &value, sizeof value); }

inline Vec broadcast(float value) { return value - Vec{}; }

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

/// Sum of all lanes: halves are added until one lane is left, so the order is the same in every call.
inline float sum(Vec value) {
  using Four = float __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  using Eight = float __attribute__((vector_size(32)));
  const Eight eight = __builtin_shufflevector(value, value, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(value, value, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX2__)
  const Vec eight = value;
#endif
#if defined(__AVX2__)
  const Four four =
      __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#else
  const Four four = value;
#endif
  const Four two = four + __builtin_shufflevector(four, four, 2, 3, 0, 1);
  return two[0] + two[1];
}

/// 2^x to 2 ulp; subnormal results are kept, too large ones are +inf, NaN stays NaN.
inline Vec exp2(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = x < -160.0f ? broadcast(-160.0f) : x;
  x = x > 160.0f ? broadcast(160.0f) : x;
  const Vec shifted = x + kRound;
  const Vec r = x - (shifted - kRound);  // exact, in [-0.5, 0.5]
  // 1 + r p(r), p through (2^r - 1) / r at the six Chebyshev nodes of [-0.5, 0.5]: relative error 1e-8.
  Vec p = broadcast(1.54531634e-4f);
  p = p * r + 1.33908633e-3f;
  p = p * r + 9.61808302e-3f;
  p = p * r + 5.55035695e-2f;
  p = p * r + 2.40226507e-1f;
  p = p * r + 6.93147182e-1f;
  p = p * r + 1.0f;
  // Two factors, since 2^n alone leaves the range of normal floats where p 2^n need not.
  const IntVec n = __builtin_bit_cast(IntVec, shifted) - __builtin_bit_cast(int32_t, kRound);
  const IntVec half = n >> 1;
  return p * __builtin_bit_cast(Vec, (half + 127) << 23) * __builtin_bit_cast(Vec, (n - half + 127) << 23);
}

constexpr float kLog2E = 1.44269504f;

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp2(x * -kLog2E)); }

}  // namespace sala::cpu::SALA_SIMD_LEVEL
