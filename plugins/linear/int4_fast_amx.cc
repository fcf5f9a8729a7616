// Products of many tokens with int4 weights by the tile registers of AMX.

#include "cpu/tiles.h"
#include "linear/int4_fast_rows_simd.h"
#include "linear/int4_fast_words_simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

constexpr int64_t kSide = kRegisterRows;  // a register of sums is [16 rows, 16 tokens]
constexpr int64_t kRegisterWords = kSide * kSide;
constexpr int64_t kPanelRows = 2 * kSide;
constexpr int64_t kTileTokens = 2 * kSide;
constexpr int64_t kScalesAt = 4 * kRegisterWords;
static_assert(kLanes == kSide && kGroupBytes == kRegisterRowBytes);

/// A group of a panel: the low weights [2, 16 rows, 64] as int8, then the high ones, then scales [kPanelRows].
int64_t panel_floats(Int4Groups) { return kScalesAt + kPanelRows; }

/// A group of a tile: the codes [2, 16 words, 16 tokens] for low weights, then for high ones, then scales
/// [kTileTokens].
int64_t tile_floats(Int4Groups) { return kScalesAt + kTileTokens; }

void place(TokenCodes token, Int4Groups groups, float* tile, int64_t place) {
  float* to = tile + place / kSide * kRegisterWords + place % kSide;
  for (int64_t g = 0; g < groups.count; ++g, to += tile_floats(groups)) {
    const int8_t* from = token.codes + g * token.codes_stride;
    for (int64_t w = 0; w < kGroupWords; ++w) {
      __builtin_memcpy(to + w * kSide, from + 4 * w, 4);
      __builtin_memcpy(to + w * kSide + 2 * kRegisterWords, from + kGroupBytes + 4 * w, 4);
    }
    tile[g * tile_floats(groups) + kScalesAt + place] = token.scales[g * token.scales_stride];
  }
}

/// The weights of 64 nibbles, whatever is above them in their bytes.
inline IntVec weights_of(IntVec nibbles) {
  const __m128i numbers = _mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  return (IntVec)_mm512_permutexvar_epi8((__m512i)nibbles, _mm512_broadcast_i32x4(numbers));
}

constexpr int64_t kRowsAtOnce = 8;  // that are read side by side

/// Spreads kRowsAtOnce rows out.
template <bool kWhole>
inline void expand_rows(const Row* rows, Int4Groups groups, int64_t first, int64_t count, float* to) {
  for (int64_t g = 0; g < count; ++g, to += panel_floats(groups)) {
    const Place place(groups, first + g);
#pragma GCC unroll 8
    for (int64_t r = 0; r < kRowsAtOnce; ++r) {
      const uint8_t* from = rows[r].codes + place.offset;
      prefetch<3>(from, kAheadBytes);
      const IntVec bytes = GroupBytes::read<kWhole>(from, place.bytes).vectors[0];
      store_words(to + r * kSide, weights_of(bytes));
      store_words(to + r * kSide + 2 * kRegisterWords, weights_of(bytes >> 4));
    }
  }
}

void expand(const Row* rows, Int4Groups groups, int64_t first, int64_t count, float* panel, float* scratch) {
  for (int64_t r = 0; r < kPanelRows; r += kRowsAtOnce) {
    if (groups.columns == kGroupNibbles) {
      expand_rows<true>(rows + r, groups, first, count, panel + r * kSide);
    } else {
      expand_rows<false>(rows + r, groups, first, count, panel + r * kSide);
    }
  }
  for (int64_t r = 0; r < kPanelRows; ++r) {
    read_scales(rows[r], groups, scratch);
    for (int64_t g = 0; g < count; ++g) panel[g * panel_floats(groups) + kScalesAt + r] = scratch[first + g];
  }
}

/// Products of a group as integers, [2, 2, 16 rows, 16 tokens], and what they are still to be multiplied with.
struct Dots {
  const int32_t* dots;
  const float* row_scales;
  const float* token_scales;
};

/// Adds an eighth of the products of a group to sums [kPanelRows, kTileTokens].
template <int kPart>
inline __attribute__((always_inline)) void add_part(Dots from, float* sums) {
  constexpr int64_t kHalf = kSide / 2;
  constexpr int64_t kRow = kPart / 4 * kSide + kPart % 2 * kHalf, kToken = kPart / 2 % 2 * kSide;
  const Vec token_scales = load(from.token_scales + kToken);
#pragma GCC unroll 8
  for (int64_t r = 0; r < kHalf; ++r) {
    const IntVec dots = load_int(from.dots + kPart * kHalf * kSide + r * kSide);
    float* to = sums + (kRow + r) * kTileTokens + kToken;
    store(to, load(to) + __builtin_convertvector(dots, Vec) * (token_scales * from.row_scales[kRow + r]));
  }
}

/// dots = the products of a group. Meanwhile those of the group before, if there is one, are added to sums: their
/// arithmetic takes about as long as that of the tiles, which has units of its own.
template <bool kAddsBefore>
inline __attribute__((always_inline)) void multiply_group(const float* panel, const float* tile, int32_t* dots,
                                                          Dots before, float* sums) {
  constexpr int64_t kStride = kRegisterRowBytes;
  const auto add = [&]<int kPart>() __attribute__((always_inline)) {
    if constexpr (kAddsBefore) add_part<kPart>(before, sums);
  };
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  load_tile<4>(panel, kStride);
  load_tile<6>(tile, kStride);
  add_int8_products<0, 4, 6>();
  add.template operator()<0>();
  load_tile<7>(tile + kRegisterWords, kStride);
  add_int8_products<1, 4, 7>();
  add.template operator()<1>();
  load_tile<5>(panel + kRegisterWords, kStride);
  add_int8_products<2, 5, 6>();
  add.template operator()<2>();
  add_int8_products<3, 5, 7>();
  add.template operator()<3>();
  load_tile<4>(panel + 2 * kRegisterWords, kStride);
  load_tile<6>(tile + 2 * kRegisterWords, kStride);
  add_int8_products<0, 4, 6>();
  add.template operator()<4>();
  load_tile<7>(tile + 3 * kRegisterWords, kStride);
  add_int8_products<1, 4, 7>();
  store_tile<0>(dots, kStride);
  add.template operator()<5>();
  load_tile<5>(panel + 3 * kRegisterWords, kStride);
  add_int8_products<2, 5, 6>();
  store_tile<1>(dots + kRegisterWords, kStride);
  add.template operator()<6>();
  add_int8_products<3, 5, 7>();
  store_tile<2>(dots + 2 * kRegisterWords, kStride);
  add.template operator()<7>();
  store_tile<3>(dots + 3 * kRegisterWords, kStride);
}

void add_many(const float* panel, Int4Groups groups, int64_t count, const float* tile, int64_t, float* sums) {
  alignas(64) int32_t dots[2][4 * kRegisterWords];
  const Tiles tiles;
  Dots before{};
  for (int64_t g = 0; g < count; ++g, panel += panel_floats(groups), tile += tile_floats(groups)) {
    int32_t* here = dots[g % 2];
    if (g == 0) {
      multiply_group<false>(panel, tile, here, before, sums);
    } else {
      multiply_group<true>(panel, tile, here, before, sums);
    }
    before = {here, panel + kScalesAt, tile + kScalesAt};
  }
  add_part<0>(before, sums);
  add_part<1>(before, sums);
  add_part<2>(before, sums);
  add_part<3>(before, sums);
  add_part<4>(before, sums);
  add_part<5>(before, sums);
  add_part<6>(before, sums);
  add_part<7>(before, sums);
}

inline void load_block(const float* from, IntVec (&block)[16]) {
#pragma GCC unroll 16
  for (int64_t r = 0; r < kSide; ++r) block[r] = load_int(from + r * kTileTokens);
  transpose_words(block);
}

inline void store_block(const IntVec (&block)[16], float* to) {
#pragma GCC unroll 16
  for (int64_t r = 0; r < kSide; ++r) store_words(to + r * kTileTokens, block[r]);
}

void transpose(float* sums) {
  static_assert(kPanelRows == kTileTokens);
  float* below = sums + kSide * kTileTokens;
  IntVec first[16], second[16];
  load_block(sums, first);
  store_block(first, sums);
  load_block(sums + kSide, first);
  load_block(below, second);
  store_block(first, below);
  store_block(second, sums + kSide);
  load_block(below + kSide, first);
  store_block(first, below + kSide);
}

}  // namespace

extern const Int4Panels kInt4Panels;
const Int4Panels kInt4Panels{.rows = kPanelRows,
                             .tokens = kTileTokens,
                             .least_tokens = kSide + 1,
                             .least_columns = kGroupNibbles / 2 + 1,
                             .panel_floats = panel_floats,
                             .tile_floats = tile_floats,
                             .place = place,
                             .expand = expand,
                             .add = add_many,
                             .transpose = transpose};

}  // namespace sala::linear::SALA_SIMD_LEVEL
