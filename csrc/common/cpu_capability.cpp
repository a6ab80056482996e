#include "common/cpu_capability.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <string>

#if defined(DISTFORGE_X86) && defined(__linux__)
#define DISTFORGE_AMX_PERMISSION
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

bool onednn_allows_amx() {
  const char* value = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (value == nullptr) return true;
  std::string wanted(value);
  for (char& letter : wanted) letter = static_cast<char>(std::toupper(letter));
  return wanted == "ALL" || wanted == "DEFAULT" || wanted.find("AMX") != std::string::npos;
}

// The processor has the instructions, and Linux grants the state of the tiles, which a process has
// to ask for (its Documentation/arch/x86/xstate.rst).
bool detect_amx() {
#ifdef DISTFORGE_AMX_PERMISSION
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBfloat16) == 0 || (edx & kTile) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
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

bool cpu_has_amx() {
  static const bool has = cpu_multiplies_bfloat16() && onednn_allows_amx() && detect_amx();
  return has;
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
