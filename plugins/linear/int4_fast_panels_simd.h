// The order of words in panels of rows and in tiles of tokens. Included by sources that are compiled once per SIMD
// level.

#pragma once

#include "cpu/simd.h"

namespace sala::linear::SALA_SIMD_LEVEL {
namespace {

using namespace cpu::SALA_SIMD_LEVEL;

constexpr int kPanelRows = 2 * kLanes;
constexpr int64_t kTileTokens = 12;

// How words lie in panels and tiles. Apart: those of low nibbles of all rows or tokens, then those of high ones.
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int kWordsTogether = 2;  // both of a row or token, then both of the next
#else
constexpr int kWordsTogether = 1;
#endif

}  // namespace
}  // namespace sala::linear::SALA_SIMD_LEVEL
