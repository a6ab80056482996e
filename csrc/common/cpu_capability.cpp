#include "common/cpu_capability.h"

#include <algorithm>
#include <cstdlib>
#include <string>

namespace distforge {
namespace {

CpuCapability detect() {
#ifdef DISTFORGE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512) return CpuCapability::kAvx512;
  if (avx2) return CpuCapability::kAvx2;
#endif
  return CpuCapability::kDefault;
}

CpuCapability ceiling() {
  const char* value = std::getenv("ATEN_CPU_CAPABILITY");
  if (value == nullptr) return CpuCapability::kAvx512;
  const std::string wanted(value);
  if (wanted == "default") return CpuCapability::kDefault;
  if (wanted == "avx2") return CpuCapability::kAvx2;
  return CpuCapability::kAvx512;
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability capability = std::min(detect(), ceiling());
  return capability;
}

bool cpu_multiplies_bfloat16() {
#ifdef DISTFORGE_X86
  return cpu_capability() == CpuCapability::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

const char* cpu_capability_name() {
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return "avx512";
    case CpuCapability::kAvx2:
      return "avx2";
    case CpuCapability::kDefault:
      break;
  }
  return "default";
}

}  // namespace distforge
