#include "cpu/simd_level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace sala::cpu {

const char* name_of(SimdLevel level) {
  switch (level) {
    case SimdLevel::kBaseline:
      return "baseline";
#if defined(__x86_64__)
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kAvx2Vnni:
      return "avx2_vnni";
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kAvx512Bf16:
      return "avx512_bf16";
    case SimdLevel::kAmx:
      return "amx";
#elif defined(__aarch64__)
    case SimdLevel::kNeonDot:
      return "neon_dot";
    case SimdLevel::kNeonMatrix:
      return "neon_matrix";
#endif
  }
  return "unknown";
}

#if defined(__x86_64__)

namespace {

/// What the processor can, by the bits of CPUID. Not __builtin_cpu_supports, which finds nothing if Zig links it.
struct Processor {
  unsigned leaf1_c = 0, leaf7_b = 0, leaf7_c = 0, leaf7_d = 0, leaf71_a = 0;
  unsigned long long saved = 0;  // which registers the operating system saves

  Processor() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &leaf1_c, &d) != 0 && (leaf1_c & bit_OSXSAVE) != 0) {
      unsigned low = 0, high = 0;
      __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      saved = static_cast<unsigned long long>(high) << 32 | low;
    }
    unsigned subleaves = 0;
    if (__get_cpuid_count(7, 0, &subleaves, &leaf7_b, &leaf7_c, &leaf7_d) == 0) return;
    if (subleaves >= 1) __get_cpuid_count(7, 1, &leaf71_a, &b, &c, &d);
  }

  bool saves(unsigned long long registers) const { return (saved & registers) == registers; }
};

bool has(unsigned value, unsigned bits) { return (value & bits) == bits; }

constexpr unsigned kAvx512Bits = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
constexpr unsigned kAvxVnniBit = 1U << 4, kAvx512Bf16Bit = 1U << 5;  // of leaf 7.1, register A
constexpr unsigned kAmxBits = 1U << 22 | 1U << 24 | 1U << 25;        // of leaf 7, register D
constexpr unsigned long long kYmm = 0x6, kZmm = 0xe6, kTileConfig = 1 << 17, kTileData = 1 << 18;  // bits of XCR0

/// Linux gives tile registers to a process that asks, for all its threads. Asking again changes nothing.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileDataFeature = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileDataFeature) == 0;
}

}  // namespace

bool runs(SimdLevel level) {
  static const Processor processor;
  switch (level) {
    case SimdLevel::kBaseline:
      return true;
    case SimdLevel::kAvx2:
      return processor.saves(kYmm) && has(processor.leaf1_c, bit_FMA) && has(processor.leaf7_b, bit_AVX2);
    case SimdLevel::kAvx2Vnni:
      return runs(SimdLevel::kAvx2) && has(processor.leaf71_a, kAvxVnniBit);
    case SimdLevel::kAvx512:
      return runs(SimdLevel::kAvx2) && processor.saves(kZmm) && has(processor.leaf7_b, kAvx512Bits);
    case SimdLevel::kAvx512Bf16:
      return runs(SimdLevel::kAvx512) && has(processor.leaf7_c, bit_AVX512VBMI | bit_AVX512VNNI) &&
             has(processor.leaf71_a, kAvx512Bf16Bit);
    case SimdLevel::kAmx:
      return runs(SimdLevel::kAvx512Bf16) && has(processor.leaf7_d, kAmxBits) &&
             processor.saves(kTileConfig | kTileData) && may_use_tiles();
  }
  return false;
}

#elif defined(__aarch64__)

bool runs(SimdLevel level) {
  constexpr unsigned long kDotProducts = 1UL << 20;                 // of AT_HWCAP
  constexpr unsigned long kMatrixProducts = 1UL << 13 | 1UL << 14;  // of AT_HWCAP2: of int8 and of bfloat16
  switch (level) {
    case SimdLevel::kBaseline:
      return true;
    case SimdLevel::kNeonDot:
      return (getauxval(AT_HWCAP) & kDotProducts) != 0;
    case SimdLevel::kNeonMatrix:
      return runs(SimdLevel::kNeonDot) && (getauxval(AT_HWCAP2) & kMatrixProducts) == kMatrixProducts;
  }
  return false;
}

#else

bool runs(SimdLevel level) { return level == SimdLevel::kBaseline; }

#endif

SimdLevel best_simd_level() {
  SimdLevel best = SimdLevel::kBaseline;
  for (const SimdLevel level : kSimdLevels) {
    if (runs(level)) best = level;
  }
  return best;
}

}  // namespace sala::cpu
