// Tile registers of AMX: matrices of 16 rows of 64 bytes, and their products. Included by sources that are compiled for
// the level amx alone (`*_amx.cc`), as simd.h.
//
// A register is a template argument. The compiler knows nothing of what registers hold: their instructions stay in the
// order in which they are written. Loads and stores count as reading and writing any memory.

#pragma once

#include <cstdint>

namespace sala::cpu::SALA_SIMD_LEVEL {

// Without a name, so that no function becomes a definition that sources share.
namespace {

constexpr int64_t kRegisterRows = 16;
constexpr int64_t kRegisterRowBytes = 64;

/// The thread's use of its eight registers, all of 16 rows of 64 bytes. What they held is lost at both ends. While a
/// thread has them, the system saves 8 KiB whenever it takes the thread from its core.
class Tiles {
 public:
  Tiles() {
    struct {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const config;
    static_assert(sizeof config == 64);
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Tiles() { asm volatile("tilerelease" : : : "memory"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

template <int kTile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

/// Rows that lie `stride` bytes apart.
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}

template <int kTile>
inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}

/// sums[i][j] += left[i][k] * right[k][j] in float32, for 32 bfloat16 in a row of `left`. A row of `right` holds two of
/// its own, number by number: the 32-bit word right[k / 2][j] has the even k in its low half.
template <int kSums, int kLeft, int kRight>
inline void add_bfloat16_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
}

/// The same of int8 with sums in int32, for 64 int8 in a row of `left`: the word right[k / 4][j] has four, the earliest
/// in its low byte.
template <int kSums, int kLeft, int kRight>
inline void add_int8_products() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight));
}

}  // namespace
}  // namespace sala::cpu::SALA_SIMD_LEVEL
