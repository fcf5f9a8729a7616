// Which vector instructions the CPU kernels use: every level is in the library, the machine decides at run time.

#pragma once

#include <cstdint>
#include <initializer_list>

namespace sala::cpu {

/// In rising order.
enum class SimdLevel : uint8_t {
  kBaseline,  // what every machine of the architecture has: SSE2, NEON
#if defined(__x86_64__)
  kAvx2,        // AVX2 and FMA
  kAvx2Vnni,    // and AVX-VNNI: Alder Lake
  kAvx512,      // AVX-512 F, BW, DQ and VL; not always AVX-VNNI
  kAvx512Bf16,  // and VBMI, VNNI and BF16: Zen 4
  kAmx,         // and AMX with INT8 and BF16: Sapphire Rapids
#elif defined(__aarch64__)
  kNeonDot,     // products of four int8: Cortex-A76, Jetson AGX Orin
  kNeonMatrix,  // and products of matrices of int8 and BF16: Neoverse V1, DGX Spark
#endif
};

#if defined(__x86_64__)
constexpr SimdLevel kSimdLevels[] = {SimdLevel::kBaseline, SimdLevel::kAvx2,       SimdLevel::kAvx2Vnni,
                                     SimdLevel::kAvx512,   SimdLevel::kAvx512Bf16, SimdLevel::kAmx};
#elif defined(__aarch64__)
constexpr SimdLevel kSimdLevels[] = {SimdLevel::kBaseline, SimdLevel::kNeonDot, SimdLevel::kNeonMatrix};
#else
constexpr SimdLevel kSimdLevels[] = {SimdLevel::kBaseline};
#endif

/// The constant's name in the case of C: "avx2_vnni" of kAvx2Vnni.
const char* name_of(SimdLevel level);

/// Whether this machine has the instructions of a level, and lets this process use them.
bool runs(SimdLevel level);

/// The highest level that this machine runs.
SimdLevel best_simd_level();

/// Kernels, and the level that they are compiled for.
template <class Kernels>
struct Compiled {
  SimdLevel level;
  const Kernels* kernels;
};

/// The kernels of the highest level up to `level`. `compiled` begins with the baseline and rises.
template <class Kernels>
const Kernels& highest(std::initializer_list<Compiled<Kernels>> compiled, SimdLevel level) {
  const Kernels* found = compiled.begin()->kernels;
  for (const Compiled<Kernels>& one : compiled) {
    if (one.level <= level) found = one.kernels;
  }
  return *found;
}

}  // namespace sala::cpu

// The levels that every kernel source (`*_simd.cc`) is compiled for: M(level constant, namespace). Sources that gain by
// more levels name those themselves, as plugins/onnxruntime/CMakeLists.txt does.
#if defined(__x86_64__)
#define SALA_FOR_EACH_SIMD_LEVEL(M) \
  M(kBaseline, baseline)            \
  M(kAvx2, avx2)                    \
  M(kAvx512, avx512)                \
  M(kAvx512Bf16, avx512_bf16)
#else
#define SALA_FOR_EACH_SIMD_LEVEL(M) M(kBaseline, baseline)
#endif
