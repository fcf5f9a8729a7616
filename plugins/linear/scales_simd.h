// Scales of stored weights as vectors. Compiled once per SIMD level.

#pragma once

#include "linear/formats_simd.h"
#include "linear/numbers.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

/// Asks for the line at from + bytes; as an integer, since the address may lie beyond the weight.
template <int kLocality>
inline void prefetch(const uint8_t* from, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(bytes)),
                     0, kLocality);
}

/// Where the scales of a product enter.
enum class ScaleUse {
  kSums,     // a sum over whole steps is multiplied by its scale
  kLanes,    // a step has several, each for whole slots
  kNumbers,  // none of these: rows become float32 numbers first
};

template <class Format>
ScaleUse scale_use(const Product& product) {
  constexpr int64_t kWeights = kStepWeights<Format>;
  const int64_t shared = product.scale_columns;
  if (shared == product.columns || (shared > 0 && shared % kWeights == 0)) return ScaleUse::kSums;
  // Slots of bytes are out of order inside of 16 weights: of their scales only those of mxfp8 are known to fit.
  const bool fits = kSlotWeights<Format> == 8 || product.kind == WeightKind::kMxfp8;
  if (Format::kLaneScales && fits && shared > 0 && shared % kSlotWeights<Format> == 0 && kWeights % shared == 0) {
    return ScaleUse::kLanes;
  }
  return ScaleUse::kNumbers;
}

template <class Format>
int64_t steps_of(const Product& product) {
  return (product.columns + kStepWeights<Format> - 1) / kStepWeights<Format>;
}

/// Scales of a row: as many as it has, and zeros for a vector that begins at the last.
inline int64_t scale_floats(const Product& product) { return product.columns / product.scale_columns + kLanes; }

using Bytes = uint8_t __attribute__((vector_size(kLanes)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes)));

/// The scales of a row in float32, with a vector of zeros behind them.
inline void decode_scales(const Row& row, int64_t count, float* out) {
  store(out + count, Vec{});
  int64_t i = 0;
  if (row.scale_type == ScaleType::kFloat8) {
    for (; i + kLanes <= count; i += kLanes) {
      Bytes codes;
      __builtin_memcpy(&codes, static_cast<const uint8_t*>(row.scales) + i, sizeof codes);
      store(out + i, from_float8_codes(__builtin_convertvector(codes, IntVec)));
    }
  } else if (row.scale_type == ScaleType::kE8m0) {
    for (; i + kLanes <= count; i += kLanes) {
      Bytes codes;
      __builtin_memcpy(&codes, static_cast<const uint8_t*>(row.scales) + i, sizeof codes);
      const IntVec exponents = __builtin_convertvector(codes, IntVec);
      const IntVec powers = exponents == 0 ? (IntVec{} + 0x00400000) : exponents << 23;  // 2^-127 is no normal number
      store(out + i, as_float(exponents == 0xFF ? (IntVec{} + 0x7FC00000) : powers));
    }
  } else if (row.scale_type == ScaleType::kBFloat16) {
    for (; i + kLanes <= count; i += kLanes) {
      Halves bits;
      __builtin_memcpy(&bits, static_cast<const uint8_t*>(row.scales) + 2 * i, sizeof bits);
      store(out + i, as_float(__builtin_convertvector(bits, IntVec) << 16));
    }
  } else if (row.scale_type == ScaleType::kFloat16) {
    for (; i + kLanes <= count; i += kLanes) {
      Halves bits;
      __builtin_memcpy(&bits, static_cast<const uint8_t*>(row.scales) + 2 * i, sizeof bits);
#if defined(__AVX512F__)
      store(out + i, _mm512_cvtph_ps(__builtin_bit_cast(__m256i, bits)));
#elif defined(__aarch64__)
      store(out + i, vcvt_f32_f16(__builtin_bit_cast(float16x4_t, bits)));
#else
      store(out + i, Float16Weights::get<1>(__builtin_convertvector(bits, IntVec) << 16));
#endif
    }
  }
  for (; i < count; ++i) out[i] = scale_at(row.scale_type, row.scales, i);
}

/// The scales of the slots of a step, from the scales of the step.
template <class Format>
inline Vec lane_scales(const float* scales, int64_t shared) {
  const int64_t slots = shared / kSlotWeights<Format>;  // that share a scale
#if defined(__AVX512F__)
  if constexpr (kSlotWeights<Format> == 4) {  // two scales, of 32 weights each
    return _mm512_mask_broadcastss_ps(broadcast(scales[0]), 0xFF00, _mm_load_ss(scales + 1));
  }
  const IntVec lanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const IntVec index = lanes >> __builtin_ctzll(static_cast<uint64_t>(slots));
  return _mm512_permutexvar_ps(__builtin_bit_cast(__m512i, index), load(scales));
#elif defined(__AVX2__)
  const IntVec lanes{0, 1, 2, 3, 4, 5, 6, 7};
  const IntVec index = lanes >> __builtin_ctzll(static_cast<uint64_t>(slots));
  return _mm256_permutevar8x32_ps(load(scales), __builtin_bit_cast(__m256i, index));
#elif defined(__aarch64__)
  return slots == 1 ? load(scales) : Vec{scales[0], scales[0], scales[1], scales[1]};
#else
  Vec result{};
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = scales[lane / slots];
  return result;
#endif
}

#if defined(__AVX512VBMI__)
/// The same from eight e4m3 scales of sixteen weights each: every lane is put together from two bytes of a table.
inline Vec lane_scales_of_float8(const void* scales) {
  uint64_t codes;
  __builtin_memcpy(&codes, scales, sizeof codes);
  // The two high bytes of lane l are code l / 2.
  const IntVec spread{0x0000'8080, 0x0000'8080, 0x0101'8080, 0x0101'8080, 0x0202'8080, 0x0202'8080,
                      0x0303'8080, 0x0303'8080, 0x0404'8080, 0x0404'8080, 0x0505'8080, 0x0505'8080,
                      0x0606'8080, 0x0606'8080, 0x0707'8080, 0x0707'8080};
  const __m512i all = _mm512_set1_epi64(static_cast<int64_t>(codes));
  const __m512i bytes = _mm512_shuffle_epi8(all, __builtin_bit_cast(__m512i, spread));
  constexpr __mmask64 kHighBytes = 0x8888'8888'8888'8888U;
  const __m512i high = kFloat8High.at(bytes), low = kFloat8Low.at(bytes);
  const __m512i magnitude = _mm512_mask_mov_epi8(low, kHighBytes, high);
  return as_float(__builtin_bit_cast(
      IntVec, _mm512_ternarylogic_epi32(magnitude, bytes, _mm512_set1_epi32(INT32_MIN), kSignOfSecond)));
}
#endif

/// Numbers [first, last) of a row, scaled.
inline void expand_numbers(const Product& product, const Row& row, int64_t first, int64_t last, float* out) {
  for (int64_t k = first; k < last; ++k) {
    out[k - first] =
        number_at(product.kind, row.codes, k) * scale_at(row.scale_type, row.scales, k / row.scale_columns);
  }
}

#if defined(SALA_HAS_BF16_PAIRS)
/// Calls body(format) with the format of pairs of a product that rounds its inputs.
template <class Body>
inline auto with_pairs(const Product& product, Body&& body) {
  switch (product.kind) {
    case WeightKind::kFloat8:
    case WeightKind::kMxfp8:
      return body(Float8Pairs{});
    case WeightKind::kInt8:
      return body(Int8Pairs{});
    case WeightKind::kNvfp4:
      return body(Nvfp4Pairs{});
    default:
      return body(BFloat16Pairs{});
  }
}
#endif

/// Calls body(format, use) with the format of a product; with Float32Weights where rows become numbers first.
template <class Body>
inline auto with_format(const Product& product, Body&& body) {
  const auto choose = [&](auto format) {
    const ScaleUse use = scale_use<decltype(format)>(product);
    return use == ScaleUse::kNumbers ? body(Float32Weights{}, use) : body(format, use);
  };
#if defined(SALA_HAS_BF16_PAIRS)
  if (product.round_inputs) return with_pairs(product, choose);
#endif
  switch (product.kind) {
    case WeightKind::kBFloat16:
      return choose(BFloat16Weights{});
    case WeightKind::kFloat16:
      return choose(Float16Weights{});
    case WeightKind::kFloat8:
    case WeightKind::kMxfp8:
      return choose(Float8Weights{});
    case WeightKind::kInt8:
      return choose(Int8Weights{});
    case WeightKind::kInt4:
      return choose(Int4Weights{});
    case WeightKind::kNvfp4:
      return choose(Nvfp4Weights{});
    default:
      return choose(Float32Weights{});
  }
}

/// 32-bit slots of one token.
inline int64_t slots_of(const Product& product) {
  return with_format(product, [&](auto format, ScaleUse) -> int64_t {
    using Format = decltype(format);
    return steps_of<Format>(product) * Format::kVectors * kLanes;
  });
}

/// A product over rows that have become float32 numbers.
inline Product of_numbers(const Product& product) {
  Product numbers = product;
  numbers.kind = WeightKind::kFloat32;
  numbers.scale_columns = product.columns;
  return numbers;
}

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
