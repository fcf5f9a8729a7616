#include "cpu/simd_level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace sala::cpu {

const char* name_of(SimdLevel level) {
  switch (level) {
    case SimdLevel::kBaseline:
      return "baseline";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kAvx512:
      return "avx512";
    case SimdLevel::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

#if defined(__x86_64__)

namespace {

/// What the processor can, by the bits of CPUID. Not __builtin_cpu_supports, which finds nothing if Zig links it.
struct Processor {
  unsigned leaf1_c = 0, leaf7_b = 0, leaf7_c = 0, leaf71_a = 0;
  unsigned long long saved = 0;  // which registers the operating system saves

  Processor() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &leaf1_c, &d) != 0 && (leaf1_c & bit_OSXSAVE) != 0) {
      unsigned low = 0, high = 0;
      __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      saved = static_cast<unsigned long long>(high) << 32 | low;
    }
    unsigned subleaves = 0;
    if (__get_cpuid_count(7, 0, &subleaves, &leaf7_b, &leaf7_c, &d) == 0) return;
    if (subleaves >= 1) __get_cpuid_count(7, 1, &leaf71_a, &b, &c, &d);
  }

  bool saves(unsigned long long registers) const { return (saved & registers) == registers; }
};

bool has(unsigned value, unsigned bits) { return (value & bits) == bits; }

constexpr unsigned kAvx512Bits = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
constexpr unsigned long long kYmm = 0x6, kZmm = 0xe6;  // bits of XCR0

}  // namespace

SimdLevel best_simd_level() {
  const Processor processor;
  const bool has_avx2 = processor.saves(kYmm) && has(processor.leaf1_c, bit_FMA) && has(processor.leaf7_b, bit_AVX2);
  if (!has_avx2) return SimdLevel::kBaseline;
  if (!processor.saves(kZmm) || !has(processor.leaf7_b, kAvx512Bits)) return SimdLevel::kAvx2;
  const bool has_bf16 =
      has(processor.leaf7_c, bit_AVX512VBMI | bit_AVX512VNNI) && has(processor.leaf71_a, bit_AVX512BF16);
  return has_bf16 ? SimdLevel::kAvx512Bf16 : SimdLevel::kAvx512;
}

#else

SimdLevel best_simd_level() { return SimdLevel::kBaseline; }

#endif

}  // namespace sala::cpu
