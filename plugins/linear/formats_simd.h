// How kernels read stored weights, a step of bytes at a time, as vectors of numbers. Compiled once per SIMD level.
//
// A format gives the numbers of a step in the order in which they come out with the fewest instructions. Inputs are
// packed in the same order, since a sum of products does not ask for one.

#pragma once

#include "cpu/simd.h"
#include "linear/linear_simd.h"

#if defined(__AVX512F__) || defined(__AVX2__)
// GCC 12 takes the undefined operands of its own intrinsics for mistakes of ours.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include "linear/codes_neon_simd.h"
#endif

// Products of pairs of bfloat16.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define SALA_HAS_BF16_PAIRS 1
#endif

namespace sala::linear::SALA_SIMD_LEVEL {

// Without a name, so that no function becomes a definition that sources share.
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

inline Vec as_float(IntVec bits) { return __builtin_bit_cast(Vec, bits); }

/// Products of float32. A slot, 32 bits of a vector, is one number.
struct Fp32 {
  using Numbers = Vec;
  static constexpr int kPerSlot = 1;
  static constexpr int kSlotsTogether = 1;  // of a row or token, in panels and tiles of many tokens

  static Numbers load(const float* slots) { return cpu::SALA_SIMD_LEVEL::load(slots); }
  static Numbers broadcast(const float* slot) { return cpu::SALA_SIMD_LEVEL::broadcast(*slot); }
  static Vec multiply_add(Vec sums, Numbers weights, Numbers x) { return sums + weights * x; }
  static Numbers scaled(Numbers numbers, Vec scales) { return numbers * scales; }

  static float slot(const float* x, const int16_t (&index)[1], float factor) { return x[index[0]] * factor; }
};

#if defined(SALA_HAS_BF16_PAIRS)
/// Products of bfloat16 with sums in float32. A slot is two numbers, the earlier one in the low half.
struct Bf16 {
  using Numbers = IntVec;
  static constexpr int kPerSlot = 2;

  static Numbers load(const float* slots) { return load_int(slots); }
#if defined(__AVX512BF16__)
  static constexpr int kSlotsTogether = 1;
  static Numbers broadcast(const float* slot) {
    int32_t bits;
    __builtin_memcpy(&bits, slot, sizeof bits);
    return __builtin_bit_cast(IntVec, _mm512_set1_epi32(bits));
  }
  static Vec multiply_add(Vec sums, Numbers weights, Numbers x) {
    return _mm512_dpbf16_ps(sums, __builtin_bit_cast(__m512bh, weights), __builtin_bit_cast(__m512bh, x));
  }
#else
  static constexpr int kSlotsTogether = 2;  // matrices of two rows and two slots are multiplied
  static Vec multiply_add(Vec sums, Numbers weights, Numbers x) {
    return vbfdotq_f32(sums, __builtin_bit_cast(bfloat16x8_t, weights), __builtin_bit_cast(bfloat16x8_t, x));
  }
#endif
  /// Exact where the product has no more bits than a bfloat16 holds.
  static Numbers scaled(Numbers numbers, Vec scales) {
    const Vec low = as_float(numbers << 16) * scales;
    const Vec high = as_float(numbers & -0x10000) * scales;
#if defined(__AVX512BF16__)
    const auto low_bits = __builtin_bit_cast(__m512i, low);
    return __builtin_bit_cast(IntVec, _mm512_srli_epi32(low_bits, 16)) | (__builtin_bit_cast(IntVec, high) & -0x10000);
#else
    return (__builtin_bit_cast(IntVec, low) >> 16 & 0xFFFF) | (__builtin_bit_cast(IntVec, high) & -0x10000);
#endif
  }

  /// Of numbers that are rounded already, unless they are too small to count; no format of pairs needs a factor.
  static float slot(const float* x, const int16_t (&index)[2], float) {
    const auto low = __builtin_bit_cast(uint32_t, x[index[0]]) >> 16;
    const auto high = __builtin_bit_cast(uint32_t, x[index[1]]) & 0xFFFF0000U;
    return __builtin_bit_cast(float, low | high);
  }
};
#endif

/// Numbers of a step of a format.
template <class Format>
constexpr int kStepWeights = Format::kVectors * kLanes * Format::Target::kPerSlot;

/// Weights of a row that a slot sums in a step.
template <class Format>
constexpr int kSlotWeights = kStepWeights<Format> / kLanes;

/// What most formats are: their numbers stand for themselves, and a step has one scale.
struct Format {
  /// Whether a step may have several scales, each for whole slots that stand for the weights that share it.
  static constexpr bool kLaneScales = false;
  /// The power of two that the numbers of a vector are too large by, and inputs are made smaller by.
  static constexpr float excess(int) { return 1.0f; }
};

struct Float32Weights : Format {
  using Target = Fp32;
  static constexpr int kVectors = 1;
  using Raw = Vec;

  static constexpr int order(int, int slot, int) { return slot; }
  static Raw load(const uint8_t* from) { return as_float(load_int(from)); }
  template <int kVector>
  static Vec get(Raw raw) {
    return raw;
  }
};

struct BFloat16Weights : Format {
  using Target = Fp32;
  static constexpr int kVectors = 2;
  using Raw = IntVec;

  static constexpr int order(int vector, int slot, int) { return 2 * slot + vector; }
  static Raw load(const uint8_t* from) { return load_int(from); }
  template <int kVector>
  static Vec get(Raw raw) {
    return as_float(kVector == 0 ? raw << 16 : raw & -0x10000);
  }
};

#if defined(__AVX512F__)
struct Float16Weights : Format {
  using Target = Fp32;
  static constexpr int kVectors = 2;
  struct Raw {
    __m256i halves[2];
  };

  static constexpr int order(int vector, int slot, int) { return vector * kLanes + slot; }
  static Raw load(const uint8_t* from) {
    Raw raw;
    __builtin_memcpy(&raw, from, sizeof raw);
    return raw;
  }
  template <int kVector>
  static Vec get(const Raw& raw) {
    return _mm512_cvtph_ps(raw.halves[kVector]);
  }
};
#elif defined(__aarch64__)
struct Float16Weights : Format {
  using Target = Fp32;
  static constexpr int kVectors = 2;
  using Raw = float16x8_t;

  static constexpr int order(int vector, int slot, int) { return vector * kLanes + slot; }
  static Raw load(const uint8_t* from) { return __builtin_bit_cast(Raw, load_int(from)); }
  template <int kVector>
  static Vec get(Raw raw) {
    return kVector == 0 ? vcvt_f32_f16(vget_low_f16(raw)) : vcvt_high_f32_f16(raw);
  }
};
#else
struct Float16Weights : Format {
  using Target = Fp32;
  static constexpr int kVectors = 2;
  using Raw = IntVec;

  static constexpr int order(int vector, int slot, int) { return 2 * slot + vector; }
  static Raw load(const uint8_t* from) { return load_int(from); }
  template <int kVector>
  static Vec get(Raw raw) {
    const IntVec bits = kVector == 0 ? raw << 16 : raw;
    const IntVec magnitude = bits & 0x7FFF0000;
    IntVec value = (magnitude >> 3) + (112 << 23);
    // Below 2^-14 numbers are multiples of 2^-24.
    const IntVec small = __builtin_bit_cast(IntVec, __builtin_convertvector(magnitude >> 16, Vec) * 0x1p-24f);
    value = magnitude < 0x04000000 ? small : value;
    value = magnitude >= 0x7C000000 ? (magnitude >> 3) | 0x7F800000 : value;
    return as_float(value | (bits & INT32_MIN));
  }
};
#endif

/// float32 of e4m3 codes in the low bytes, with zeros above them.
inline Vec from_float8_codes(IntVec codes) {
  const IntVec magnitude = codes & 0x7F;
  IntVec value = (magnitude << 20) + (120 << 23);
  // Below 2^-6 numbers are multiples of 2^-9.
  const IntVec small = __builtin_bit_cast(IntVec, __builtin_convertvector(magnitude, Vec) * 0x1p-9f);
  value = magnitude < 8 ? small : value;
  value = magnitude == 0x7F ? (IntVec{} + 0x7FC00000) : value;
  return as_float(value | (codes & 0x80) << 24);
}

#if defined(__AVX512VBMI__)
/// bfloat16 of 64 e4m3 codes: both bytes of a number come from tables, which the low seven bits of its code index.
struct Float8Bytes {
  __m512i high, low;

  __m512i first() const { return _mm512_unpacklo_epi8(low, high); }
  __m512i second() const { return _mm512_unpackhi_epi8(low, high); }
  /// Number `word` of each 128 bits of `first` or, with half = 1, of `second`.
  static constexpr int order(int half, int word_of_vector) {
    return word_of_vector / 8 * 16 + half * 8 + word_of_vector % 8;
  }
};

struct ByteTable {
  alignas(64) uint8_t bytes[128];
  __m512i at(__m512i index) const {
    return _mm512_permutex2var_epi8(_mm512_load_si512(bytes), index, _mm512_load_si512(bytes + 64));
  }
};

/// The bits of the bfloat16 that equals an e4m3 magnitude.
constexpr uint32_t bfloat16_of_float8(uint32_t magnitude) {
  if (magnitude == 0x7F) return 0x7FC0;
  float value = static_cast<float>(magnitude % 8 + (magnitude < 8 ? 0 : 8)) * 0x1p-9f;
  for (uint32_t exponent = magnitude / 8; exponent > 1; --exponent) value *= 2;
  return __builtin_bit_cast(uint32_t, value) >> 16;
}

constexpr uint32_t bfloat16_of_integer(uint32_t magnitude) {
  return __builtin_bit_cast(uint32_t, static_cast<float>(magnitude)) >> 16;
}

template <class Bits>
constexpr ByteTable byte_table(Bits bits, int shift, uint32_t first) {
  ByteTable table{};
  for (uint32_t i = 0; i < 128; ++i) table.bytes[i] = static_cast<uint8_t>(bits(first + i) >> shift);
  return table;
}

constexpr ByteTable kFloat8High = byte_table(bfloat16_of_float8, 8, 0);
constexpr ByteTable kFloat8Low = byte_table(bfloat16_of_float8, 0, 0);
constexpr ByteTable kIntegerHigh = byte_table(bfloat16_of_integer, 8, 1);
constexpr ByteTable kIntegerLow = byte_table(bfloat16_of_integer, 0, 1);

constexpr int kSignOfSecond = 0xF8;  // a ternary function: first | (second & third)

inline Float8Bytes float8_bytes(const uint8_t* from) {
  const __m512i codes = _mm512_loadu_si512(from);
  return {_mm512_ternarylogic_epi32(kFloat8High.at(codes), codes, _mm512_set1_epi8(-128), kSignOfSecond),
          kFloat8Low.at(codes)};
}
#endif

#if defined(__AVX512VBMI__) || defined(__aarch64__)
struct Float8Weights : Format {
  using Target = Fp32;
  static constexpr int kVectors = 4;
  static constexpr bool kLaneScales = kLanes == 16;
  using Raw = Float8Bytes;

  static constexpr int order(int vector, int slot, int) { return Raw::order(vector / 2, 2 * slot + vector % 2); }
  static Raw load(const uint8_t* from) { return float8_bytes(from); }
  template <int kVector>
  static Vec get(const Raw& raw) {
    const auto words = __builtin_bit_cast(IntVec, kVector < 2 ? raw.first() : raw.second());
    return as_float(kVector % 2 == 0 ? words << 16 : words & -0x10000);
  }
};
#else
struct Float8Weights : Format {
  using Target = Fp32;
  static constexpr int kVectors = 4;
  static constexpr bool kLaneScales = kLanes == 16;
  using Raw = IntVec;

  static constexpr int order(int vector, int slot, int) { return 4 * slot + vector; }
  static Raw load(const uint8_t* from) { return load_int(from); }
  template <int kVector>
  static Vec get(Raw raw) {
    return from_float8_codes((raw >> 8 * kVector) & 0xFF);
  }
};
#endif

/// float32 of the unsigned field `mask` of the bits less half its range, times the place of its lowest bit. The field
/// is written below the bits of 2^23, which are then subtracted: exact, and no field is moved.
template <int32_t kMask, int32_t kHalf>
inline Vec from_field(IntVec bits) {
  constexpr int32_t kOfTwoTo23 = 0x4B000000;
  return as_float((bits & kMask) | kOfTwoTo23) - (8388608.0f + static_cast<float>(kHalf));
}

struct Int8Weights : Format {
  using Target = Fp32;
  static constexpr int kVectors = 4;
  using Raw = IntVec;

  static constexpr int order(int vector, int slot, int) { return 4 * slot + vector; }
  static constexpr float excess(int vector) { return vector % 2 == 0 ? 1.0f : 256.0f; }
  /// Codes plus 128, which are unsigned.
  static Raw load(const uint8_t* from) { return load_int(from) ^ static_cast<int32_t>(0x80808080U); }
  template <int kVector>
  static Vec get(Raw raw) {
    constexpr int kShift = kVector % 2 * 8;
    return from_field<0xFF << kShift, 0x80 << kShift>(kVector < 2 ? raw : raw >> 16);
  }
};

/// Number `slot` of a vector is nibble `vector` of its 32 bits: a slot sums eight consecutive weights.
struct Nibbles : Format {
  using Target = Fp32;
  static constexpr int kVectors = 8;
  static constexpr bool kLaneScales = true;
  using Raw = IntVec;

  static constexpr int order(int vector, int slot, int) { return 8 * slot + vector; }
  static Raw load(const uint8_t* from) { return load_int(from); }
};

#if defined(__AVX512F__)
struct Int4Weights : Nibbles {
  template <int kVector>
  static Vec get(Raw raw) {
    const Vec numbers{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    return _mm512_permutexvar_ps(__builtin_bit_cast(__m512i, raw >> 4 * kVector), numbers);
  }
};
#else
struct Int4Weights : Nibbles {
  static constexpr float excess(int vector) { return static_cast<float>(1 << vector % 4 * 4); }
  template <int kVector>
  static Vec get(Raw raw) {
    constexpr int kShift = kVector % 4 * 4;
    return from_field<0xF << kShift, 8 << kShift>(kVector < 4 ? raw : raw >> 16);
  }
};
#endif

#if defined(__aarch64__)
struct Nvfp4Weights : Nibbles {
  using Raw = Float4Words;

  static constexpr int order(int vector, int slot, int) { return 4 * (2 * slot + vector % 2) + vector / 2; }
  static Raw load(const uint8_t* from) { return float4_words(from); }
  template <int kVector>
  static Vec get(const Raw& raw) {
    const IntVec words = raw.vectors[kVector / 2];
    return as_float(kVector % 2 == 0 ? words << 16 : words & -0x10000);
  }
};
#else
struct Nvfp4Weights : Nibbles {
  template <int kVector>
  static Vec get(Raw raw) {
#if defined(__AVX512F__)
    const Vec numbers{0, .5F, 1, 1.5F, 2, 3, 4, 6, -0.0F, -.5F, -1, -1.5F, -2, -3, -4, -6};
    return _mm512_permutexvar_ps(__builtin_bit_cast(__m512i, raw >> 4 * kVector), numbers);
#else
    const IntVec nibbles = raw >> 4 * kVector;
    const IntVec magnitude = nibbles & 7;
    IntVec value = (magnitude << 22) + (126 << 23);
    value = magnitude < 2 ? -magnitude & (126 << 23) : value;  // 0 and 0.5
    return as_float(value | (nibbles & 8) << 28);
#endif
  }
};
#endif

#if defined(SALA_HAS_BF16_PAIRS)
struct BFloat16Pairs : Format {
  using Target = Bf16;
  static constexpr int kVectors = 1;
  using Raw = IntVec;

  static constexpr int order(int, int slot, int half) { return 2 * slot + half; }
  static Raw load(const uint8_t* from) { return load_int(from); }
  template <int kVector>
  static IntVec get(Raw raw) {
    return raw;
  }
};

struct Float8Pairs : Format {
  using Target = Bf16;
  static constexpr int kVectors = 2;
  static constexpr bool kLaneScales = true;
  using Raw = Float8Bytes;

  static constexpr int order(int vector, int slot, int half) { return Raw::order(vector, 2 * slot + half); }
  static Raw load(const uint8_t* from) { return float8_bytes(from); }
  template <int kVector>
  static IntVec get(const Raw& raw) {
    return __builtin_bit_cast(IntVec, kVector == 0 ? raw.first() : raw.second());
  }
};

#if defined(__AVX512BF16__)
struct Int8Bytes {
  __m512i high, low;
};

struct Int8Pairs : Format {
  using Target = Bf16;
  static constexpr int kVectors = 2;
  using Raw = Int8Bytes;

  static constexpr int order(int vector, int slot, int half) { return Float8Bytes::order(vector, 2 * slot + half); }
  /// Tables begin at magnitude 1, so that 128 has a place in them. 0 is masked.
  static Raw load(const uint8_t* from) {
    const __m512i codes = _mm512_loadu_si512(from);
    const __m512i index = _mm512_sub_epi8(_mm512_abs_epi8(codes), _mm512_set1_epi8(1));
    const __mmask64 not_zero = _mm512_test_epi8_mask(codes, codes);
    const __m512i high =
        _mm512_ternarylogic_epi32(kIntegerHigh.at(index), codes, _mm512_set1_epi8(-128), kSignOfSecond);
    return {_mm512_maskz_mov_epi8(not_zero, high), _mm512_maskz_mov_epi8(not_zero, kIntegerLow.at(index))};
  }
  template <int kVector>
  static IntVec get(const Raw& raw) {
    return __builtin_bit_cast(
        IntVec, kVector == 0 ? _mm512_unpacklo_epi8(raw.low, raw.high) : _mm512_unpackhi_epi8(raw.low, raw.high));
  }
};

/// The words of four nibbles index a table of 32 numbers, twice e2m1, so that the bit above a nibble has no meaning.
struct Nvfp4Pairs : Format {
  using Target = Bf16;
  static constexpr int kVectors = 4;
  static constexpr bool kLaneScales = true;
  using Raw = IntVec;

  static constexpr int order(int vector, int slot, int half) { return 4 * (2 * slot + half) + vector; }
  static Raw load(const uint8_t* from) { return load_int(from); }
  template <int kVector>
  static IntVec get(Raw raw) {
    using Words = uint16_t __attribute__((vector_size(64)));
    const Words numbers{0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040, 0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80,
                        0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0, 0x0000, 0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040,
                        0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0, 0xC000, 0xC040, 0xC080, 0xC0C0};
    const __m512i index = _mm512_srli_epi16(__builtin_bit_cast(__m512i, raw), 4 * kVector);
    return __builtin_bit_cast(IntVec, _mm512_permutexvar_epi16(index, __builtin_bit_cast(__m512i, numbers)));
  }
};
#else
struct Int8Pairs : Format {
  using Target = Bf16;
  static constexpr int kVectors = 2;
  using Raw = Int8Words;

  static constexpr int order(int vector, int slot, int half) { return 8 * vector + 2 * slot + half; }
  static Raw load(const uint8_t* from) { return int8_words(from); }
  template <int kVector>
  static IntVec get(const Raw& raw) {
    return raw.vectors[kVector];
  }
};

struct Nvfp4Pairs : Format {
  using Target = Bf16;
  static constexpr int kVectors = 4;
  static constexpr bool kLaneScales = true;
  using Raw = Float4Words;

  static constexpr int order(int vector, int slot, int half) { return 4 * (2 * slot + half) + vector; }
  static Raw load(const uint8_t* from) { return float4_words(from); }
  template <int kVector>
  static IntVec get(const Raw& raw) {
    return raw.vectors[kVector];
  }
};
#endif
#endif

}  // namespace

}  // namespace sala::linear::SALA_SIMD_LEVEL
