#include "cpu/simd_level.h"

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

SimdLevel best_simd_level() {
#if defined(__x86_64__)
  // These also ask whether the operating system saves the wide registers.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return SimdLevel::kBaseline;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!has_avx512) return SimdLevel::kAvx2;
  const bool has_bf16 = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
                        __builtin_cpu_supports("avx512bf16");
  return has_bf16 ? SimdLevel::kAvx512Bf16 : SimdLevel::kAvx512;
#else
  return SimdLevel::kBaseline;
#endif
}

}  // namespace sala::cpu
