#include "linear/int4_fast_simd.h"

#include "linear/int4_fast_panels_simd.h"
#include "linear/int4_fast_rows_simd.h"
#include "linear/int4_fast_words_simd.h"

#if defined(__aarch64__)
#include "linear/int4_fast_neon_simd.h"
#endif

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

constexpr int kMicroTokens = kRegisters == 32 ? 12 : 4;  // times two vectors of sums
#if defined(__aarch64__)
constexpr bool kSumsGroups = true;  // integers over a whole group, so that few are converted
#else
constexpr bool kSumsGroups = false;
#endif
constexpr int kRowsOfOneToken = kVectorBytes == 64 ? 2 : 4;  // memory is faster with two, arithmetic with four
constexpr int kRowsOfTokens = kRegisters == 16 ? 1
                              : kSumsGroups    ? 2
                                               : 4;  // sums of four tokens fill half the registers

inline Vec to_floats(IntVec value) { return __builtin_convertvector(value, Vec); }

/// Adds the products of the four bytes of a lane: nibbles times signed codes.
inline IntVec dot4(IntVec sum, IntVec nibbles, IntVec codes) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)nibbles, (__m512i)codes);
#elif defined(__AVX512BW__)
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)nibbles, (__m512i)codes);
  return sum + (IntVec)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVXVNNI__)
  return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)nibbles, (__m256i)codes);
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)nibbles, (__m256i)codes);
  return sum + (IntVec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__aarch64__)
  return neon_dot4(sum, nibbles, codes);
#else
  using ShortVec = int16_t __attribute__((vector_size(kVectorBytes)));
  const auto n = (ShortVec)nibbles, c = (ShortVec)codes;
  const auto pairs = (IntVec)((n & 0xFF) * ((c << 8) >> 8) + (n >> 8) * (c >> 8));
  return sum + ((pairs << 16) >> 16) + (pairs >> 16);
#endif
}

// --- Inputs as codes ---

/// Bits of the largest magnitude of a group: they compare like the numbers, and those of a NaN are larger than all.
inline int32_t largest_bits(const float* x) {
  using FourWords = int32_t __attribute__((vector_size(16)));
  IntVec largest{};
  for (int64_t i = 0; i < kGroupNibbles; i += kLanes) {
    const IntVec bits = load_int(x + i) & 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  }
  FourWords quarters[kLanes / 4];
  __builtin_memcpy(quarters, &largest, sizeof largest);
  for (int i = 1; i < kLanes / 4; ++i) quarters[0] = quarters[i] > quarters[0] ? quarters[i] : quarters[0];
  const FourWords swapped = __builtin_shufflevector(quarters[0], quarters[0], 2, 3, 0, 1);
  const FourWords two = swapped > quarters[0] ? swapped : quarters[0];
  return two[1] > two[0] ? two[1] : two[0];
}

/// The nearest integers, up to 2^22.
inline IntVec nearest(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  return __builtin_bit_cast(IntVec, x + kRound) - __builtin_bit_cast(int32_t, kRound);
}

/// Divisions, whatever the scale.
struct AnyScale {
  float scale;

  IntVec codes(Vec x) const {
    return nearest(max(min(x / scale, broadcast(127.0f)), broadcast(-127.0f)));  // beyond if the scale is subnormal
  }
};

/// The same for scales that have an inverse, where a product is added without being rounded first: that corrects a
/// quotient, in a fraction of the time of a division.
struct UsualScale {
  float scale;
  float inverse;

  IntVec codes(Vec x) const {
    const Vec quotient = x * inverse;
    return nearest(quotient + (x - quotient * scale) * inverse);
  }
};

#if defined(__FMA__) || defined(__aarch64__)
constexpr float kLeastUsualScale = 0x1p-100f;
#else
constexpr float kLeastUsualScale = __builtin_inff();
#endif

/// Writes the low bytes of the even lanes, and of the odd ones kGroupBytes behind them.
inline void store_codes(int8_t* to, IntVec codes) {
  using LongVec = int64_t __attribute__((vector_size(kVectorBytes)));
  using Bytes = int8_t __attribute__((vector_size(kLanes / 2)));
  const auto pairs = __builtin_bit_cast(LongVec, codes);
  const Bytes odd = __builtin_convertvector(pairs >> 32, Bytes);
#if defined(__AVX512F__)
  const __m128i even = _mm512_cvtepi64_epi8((__m512i)codes);  // GCC 12 converts this one number by number
#else
  const Bytes even = __builtin_convertvector(pairs, Bytes);
#endif
  __builtin_memcpy(to, &even, sizeof odd);
  __builtin_memcpy(to + kGroupBytes, &odd, sizeof odd);
}

/// Writes the codes of a group and returns their sum.
template <class Scale>
inline float encode_group(const float* x, Scale scale, int8_t* codes) {
  IntVec total{};
  for (int64_t i = 0; i < kGroupNibbles; i += kLanes) {
    const IntVec some = scale.codes(load(x + i));
    store_codes(codes + i / 2, some);
    total += some;
  }
  return sum(to_floats(total));
}

void encode(const float* x, Int4Groups groups, TokenCodes token) {
  constexpr int32_t kInfinity = 0x7F800000;
  float padded[kGroupNibbles];
  for (int64_t g = 0; g < groups.count; ++g) {
    const float* from = x + g * groups.columns;
    if (groups.columns < kGroupNibbles) {
      __builtin_memset(padded, 0, sizeof padded);
      __builtin_memcpy(padded + Place(groups, g).first_nibble, from,
                       static_cast<size_t>(groups.columns) * sizeof(float));
      from = padded;
    }
    int8_t* codes = token.codes + g * token.codes_stride;
    const int32_t largest = largest_bits(from);
    // A NaN times codes of zero is a NaN.
    const float scale = largest < kInfinity ? __builtin_bit_cast(float, largest) / 127.0f : __builtin_nanf("");
    float total = 0.0f;
    if (scale >= kLeastUsualScale) {
      total = encode_group(from, UsualScale{scale, 1.0f / scale}, codes);
    } else if (scale > 0.0f) {
      total = encode_group(from, AnyScale{scale}, codes);
    } else {
      __builtin_memset(codes, 0, kGroupNibbles);
    }
    token.scales[g * token.scales_stride] = scale;
    token.bases[g * token.scales_stride] = -8.0f * total;
  }
}

// --- Few tokens: every row is read once, in order, and multiplied with all tokens ---

/// Adds to lanes of `sums` the products of nibbles and codes times scales [row, groups, scales_of(kTokens)].
template <int kRows, int kTokens, bool kWhole>
inline void add_products(const uint8_t* const (&rows)[kRows], Int4Groups groups, const int8_t* codes,
                         const float* scales, Vec (&all_sums)[kRows][kTokens]) {
  Vec sums[kRows][kTokens];
  __builtin_memcpy(&sums, &all_sums, sizeof sums);
  for (int64_t g = 0; g < groups.count; ++g) {
    const Place place(groups, g);
    const int64_t offset = kWhole ? g * kGroupBytes : place.offset;
    GroupBytes bytes[kRows];
    IntVec dots[kRows][kTokens] = {};
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      prefetch<3>(rows[r] + offset, kAheadBytes);
      bytes[r] = GroupBytes::read<kWhole>(rows[r] + offset, place.bytes);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kGroupVectors; ++v) {
      IntVec low[kRows], high[kRows];
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        low[r] = low_nibbles(bytes[r].vectors[v]);
        high[r] = high_nibbles(bytes[r].vectors[v]);
      }
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const int8_t* from = codes + t * kGroupNibbles + v * kVectorBytes;
        const IntVec for_low = load_int(from), for_high = load_int(from + kGroupBytes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          if (!kSumsGroups) dots[r][t] = IntVec{};
          dots[r][t] = dot4(dot4(dots[r][t], low[r], for_low), high[r], for_high);
          if (!kSumsGroups || v == kGroupVectors - 1) {
            sums[r][t] += to_floats(dots[r][t]) * scales[(r * groups.count + g) * scales_of(kTokens) + t];
          }
        }
      }
    }
    codes += kTokens * kGroupNibbles;
  }
  __builtin_memcpy(&all_sums, &sums, sizeof sums);
}

using Four = float __attribute__((vector_size(4 * kBlockTokens)));

inline Four load_four(const float* from) {
  Four value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

/// products[g] = scale of the row times those of the tokens. Sets the sums of each token to what its bases add.
template <int kTokens>
inline void multiply_scales(const float* row, TokenCodes tokens, int64_t groups, float* products,
                            Vec (&sums)[kTokens]) {
  Four totals[4] = {};  // independent sums
  const auto multiply = [&](int64_t g, Four& total) {
    const Four product = load_four(tokens.scales + g * kBlockTokens) * row[g];
    __builtin_memcpy(products + g * kBlockTokens, &product, sizeof product);
    total += product * load_four(tokens.bases + g * kBlockTokens);
  };
  int64_t g = 0;
  for (; g + 4 <= groups; g += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) multiply(g + i, totals[i]);
  }
  for (; g < groups; ++g) multiply(g, totals[0]);
  const Four total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) sums[t] = Vec{total[t]};
}

/// The same for a single token, whose scales lie one after another.
inline void multiply_scales(const float* row, TokenCodes token, int64_t groups, float* products, Vec (&sums)[1]) {
  Vec total{};
  int64_t g = 0;
  for (; g + kLanes <= groups; g += kLanes) {
    const Vec product = load(row + g) * load(token.scales + g);
    store(products + g, product);
    total += product * load(token.bases + g);
  }
  float rest = 0.0f;
  for (; g < groups; ++g) {
    products[g] = row[g] * token.scales[g];
    rest += products[g] * token.bases[g];
  }
  sums[0] = total + Vec{rest};
}

/// Rows first, first + stride, first + 2 stride, ... They lie apart, since the hardware foresees one stream of reads in
/// a page.
template <int kRows, int kTokens>
inline void few_tile(const Row* rows, int64_t first, int64_t stride, Int4Groups groups, TokenCodes tokens,
                     float* scratch, float* out, int64_t out_stride) {
  const uint8_t* codes[kRows];
  float* products = scratch + groups.count + kLanes;
  Vec sums[kRows][kTokens];
  for (int r = 0; r < kRows; ++r) {
    const Row& row = rows[first + r * stride];
    codes[r] = row.codes;
    prefetch_next_scales(row, groups);
    read_scales(row, groups, scratch);
    multiply_scales(scratch, tokens, groups.count, products + r * groups.count * scales_of(kTokens), sums[r]);
  }
  if (groups.columns == kGroupNibbles) {
    add_products<kRows, kTokens, true>(codes, groups, tokens.codes, products, sums);
  } else {
    add_products<kRows, kTokens, false>(codes, groups, tokens.codes, products, sums);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) out[(first + r * stride) * out_stride + t] = sum(sums[r][t]);
  }
}

template <int kRows, int kTokens>
inline void few_tokens(const Row* rows, int64_t num_rows, Int4Groups groups, TokenCodes tokens, float* scratch,
                       float* out, int64_t out_stride) {
  const int64_t stride = num_rows / kRows;
  for (int64_t r = 0; r < stride; ++r) {
    few_tile<kRows, kTokens>(rows, r, stride, groups, tokens, scratch, out, out_stride);
  }
  for (int64_t r = stride * kRows; r < num_rows; ++r) {
    few_tile<1, kTokens>(rows, r, num_rows, groups, tokens, scratch, out, out_stride);
  }
}

void few(const Row* rows, int64_t num_rows, Int4Groups groups, TokenCodes first, int64_t tokens, float* scratch,
         float* out, int64_t out_stride) {
  switch (tokens) {
    case 1:
      return few_tokens<kRowsOfOneToken, 1>(rows, num_rows, groups, first, scratch, out, out_stride);
    case 2:
      return few_tokens<kRowsOfTokens, 2>(rows, num_rows, groups, first, scratch, out, out_stride);
    case 3:
      return few_tokens<kRowsOfTokens, 3>(rows, num_rows, groups, first, scratch, out, out_stride);
    default:
      return few_tokens<kRowsOfTokens, 4>(rows, num_rows, groups, first, scratch, out, out_stride);
  }
}

// --- Many tokens: rows are spread out in panels, lane by lane, and stay in the cache ---

/// A group of a panel: nibbles [words, 2, kPanelRows] as bytes, low and high, then scales [kPanelRows].
int64_t panel_floats(Int4Groups groups) { return kPanelRows * (2 * words_of(groups) + 1); }

/// A group of a tile: codes [words, 2, kTileTokens], for low and for high nibbles, but [words, kTileTokens, 2] where
/// matrices are multiplied. Then scales and bases [kTileTokens].
int64_t tile_floats(Int4Groups groups) { return kTileTokens * (2 * words_of(groups) + 2); }

void place(TokenCodes token, Int4Groups groups, float* tile, int64_t place) {
  const int64_t words = words_of(groups);
  constexpr int64_t kHigh = kWordsTogether == 2 ? 1 : kTileTokens;
  for (int64_t g = 0; g < groups.count; ++g, tile += tile_floats(groups)) {
    const int8_t* from = token.codes + g * token.codes_stride;
    float* to = tile + place * kWordsTogether;
    for (int64_t w = 0; w < words; ++w, to += 2 * kTileTokens) {
      __builtin_memcpy(to, from + 4 * w, 4);
      __builtin_memcpy(to + kHigh, from + kGroupBytes + 4 * w, 4);
    }
    const auto base = static_cast<int32_t>(token.bases[g * token.scales_stride]);
    float* scale = tile + 2 * words * kTileTokens + place;
    *scale = token.scales[g * token.scales_stride];
    __builtin_memcpy(scale + kTileTokens, &base, sizeof base);
  }
}

#if defined(__AVX512F__)
template <bool kWhole>
inline void expand_group(const Row* rows, Place place, int64_t words, int32_t* to) {
  IntVec columns[16];
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r) {
    const uint8_t* from = rows[r].codes + place.offset;
    __builtin_prefetch(from + 256);
    columns[r] = GroupBytes::read<kWhole>(from, place.bytes).vectors[0];
  }
  transpose_words(columns);
#pragma GCC unroll 16
  for (int w = 0; w < kGroupWords; ++w) {
    if (w < words) {
      store_words(to + w * 2 * kPanelRows, columns[w] & kNibbles);
      store_words(to + (w * 2 + 1) * kPanelRows, (columns[w] >> 4) & kNibbles);
    }
  }
}
#elif defined(__aarch64__)
template <bool kWhole>
inline void expand_group(const Row* rows, Place place, int64_t words, int32_t* to) {
  GroupBytes bytes[kLanes];
#pragma GCC unroll 4
  for (int r = 0; r < kLanes; ++r) bytes[r] = GroupBytes::read<kWhole>(rows[r].codes + place.offset, place.bytes);
#pragma GCC unroll 4
  for (int v = 0; v < kGroupVectors; ++v) {
    IntVec columns[kLanes];
#pragma GCC unroll 4
    for (int r = 0; r < kLanes; ++r) columns[r] = bytes[r].vectors[v];
    transpose_words(columns);
#pragma GCC unroll 4
    for (int w = v * kLanes; w < (v + 1) * kLanes; ++w) {
      if (w < words) store_nibbles(to + w * 2 * kPanelRows, columns[w % kLanes]);
    }
  }
}
#else
template <bool kWhole>
inline void expand_group(const Row* rows, Place place, int64_t words, int32_t* to) {
  for (int r = 0; r < kLanes; ++r) {
    const GroupBytes bytes = GroupBytes::read<kWhole>(rows[r].codes + place.offset, place.bytes);
    for (int64_t w = 0; w < words; ++w) {
      const auto nibbles = stored<int32_t>(&bytes, w);
      to[w * 2 * kPanelRows + r] = nibbles & kNibbles;
      to[(w * 2 + 1) * kPanelRows + r] = (nibbles >> 4) & kNibbles;
    }
  }
}
#endif

void expand(const Row* rows, Int4Groups groups, int64_t first, int64_t count, float* panel, float* scratch) {
  const int64_t words = words_of(groups), stride = panel_floats(groups);
  for (int block = 0; block < kPanelRows; block += kLanes) {
    for (int64_t g = 0; g < count; ++g) {
      auto* to = reinterpret_cast<int32_t*>(panel + g * stride) + block * kWordsTogether;
      if (groups.columns == kGroupNibbles) {
        expand_group<true>(rows + block, Place(groups, first + g), kGroupWords, to);
      } else {
        expand_group<false>(rows + block, Place(groups, first + g), words, to);
      }
    }
  }
  for (int r = 0; r < kPanelRows; ++r) {
    read_scales(rows[r], groups, scratch);
    for (int64_t g = 0; g < count; ++g) panel[(g + 1) * stride - kPanelRows + r] = scratch[first + g];
  }
}

#if !defined(__ARM_FEATURE_DOTPROD)
/// dots[token][row] = one group's products of kTokens tokens, plus the tokens' bases.
template <int kTokens>
inline void group_dots(const int32_t* nibbles, int64_t words, const int32_t* codes, const int32_t* bases,
                       IntVec (&dots)[kTokens][2]) {
#pragma GCC unroll 12
  for (int t = 0; t < kTokens; ++t) dots[t][0] = dots[t][1] = broadcast_word(bases[t]);
  for (int64_t w = 0; w < words; ++w) {
    const IntVec first = load_int(nibbles + w * kPanelRows);
    const IntVec second = load_int(nibbles + w * kPanelRows + kLanes);
#pragma GCC unroll 12
    for (int t = 0; t < kTokens; ++t) {
      const IntVec four = broadcast_word(codes[w * kTileTokens + t]);
      dots[t][0] = dot4(dots[t][0], first, four);
      dots[t][1] = dot4(dots[t][1], second, four);
    }
  }
}
#endif

/// Adds one group's products of kTokens tokens to sums.
template <int kTokens>
inline void group_products(const int32_t* nibbles, const float* row_scales, int64_t words, const int32_t* codes,
                           const float* token_scales, const int32_t* bases, float* sums) {
  IntVec dots[kTokens][2];
  group_dots(nibbles, words, codes, bases, dots);
#pragma GCC unroll 12
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      float* to = sums + t * kPanelRows + half * kLanes;
      store(to, load(to) + to_floats(dots[t][half]) * (load(row_scales + half * kLanes) * token_scales[t]));
    }
  }
}

template <int kTokens>
inline void micro_tile(const float* panel, Int4Groups groups, int64_t count, const float* tile, int64_t first,
                       float* sums) {
  const int64_t words = 2 * words_of(groups);
  for (int64_t g = 0; g < count; ++g, panel += panel_floats(groups), tile += tile_floats(groups)) {
    const auto* codes = reinterpret_cast<const int32_t*>(tile);
    const float* scales = tile + words * kTileTokens + first;
    group_products<kTokens>(reinterpret_cast<const int32_t*>(panel), panel + words * kPanelRows, words,
                            codes + first * kWordsTogether, scales, codes + (words + 1) * kTileTokens + first,
                            sums + first * kPanelRows);
  }
}

void add_many(const float* panel, Int4Groups groups, int64_t count, const float* tile, int64_t tokens, float* sums) {
  if constexpr (kMicroTokens == kTileTokens) {
    if (tokens > 8) return micro_tile<12>(panel, groups, count, tile, 0, sums);
    if (tokens > 4) return micro_tile<8>(panel, groups, count, tile, 0, sums);
  }
  for (int64_t t = 0; t < tokens; t += 4) micro_tile<4>(panel, groups, count, tile, t, sums);
}

}  // namespace

extern const Int4Kernels kInt4Kernels;
const Int4Kernels kInt4Kernels{encode, few};

extern const Int4Panels kInt4Panels;
const Int4Panels kInt4Panels{.rows = kPanelRows,
                             .tokens = kTileTokens,
                             .least_tokens = 1,
                             .least_columns = 1,
                             .panel_floats = panel_floats,
                             .tile_floats = tile_floats,
                             .place = place,
                             .expand = expand,
                             .add = add_many,
                             .transpose = nullptr};

}  // namespace sala::linear::SALA_SIMD_LEVEL
