// Which vector instructions the CPU kernels use: every level is in the library, the machine decides at run time.

#pragma once

#include <cstdint>

namespace sala::cpu {

/// In rising order. Kernel sources (`*_simd.cc`) are compiled once for each level of the target architecture.
enum class SimdLevel : uint8_t {
  kBaseline,    // what every machine of the architecture has: SSE2, NEON
  kAvx2,        // AVX2 and FMA
  kAvx512,      // AVX-512 F, BW, DQ and VL
  kAvx512Bf16,  // and VBMI, VNNI and BF16: Zen 4, Sapphire Rapids
};

/// "baseline", "avx2", "avx512" or "avx512_bf16".
const char* name_of(SimdLevel level);

/// The highest level that this machine runs.
SimdLevel best_simd_level();

}  // namespace sala::cpu

#if defined(__x86_64__)
/// Expands to one entry per compiled level: M(level constant, namespace).
#define SALA_FOR_EACH_SIMD_LEVEL(M) \
  M(kBaseline, baseline)            \
  M(kAvx2, avx2)                    \
  M(kAvx512, avx512)                \
  M(kAvx512Bf16, avx512_bf16)
#else
#define SALA_FOR_EACH_SIMD_LEVEL(M) M(kBaseline, baseline)
#endif
