#pragma once

#include "common/cpu_capability.h"

namespace distforge {

// Body::run, which is written once and always inlined, compiled for each instruction set.
template <typename Body, typename... Arguments>
struct Compiled {
  static void by_default(Arguments... arguments) { Body::run(arguments...); }
#ifdef DISTFORGE_X86
  DISTFORGE_TARGET_AVX2 static void for_avx2(Arguments... arguments) { Body::run(arguments...); }
  DISTFORGE_TARGET_AVX512 static void for_avx512(Arguments... arguments) {
    Body::run(arguments...);
  }
#endif

  // The one for this processor.
  static auto chosen() {
#ifdef DISTFORGE_X86
    if (cpu_capability() == CpuCapability::kAvx512) return &for_avx512;
    if (cpu_capability() == CpuCapability::kAvx2) return &for_avx2;
#endif
    return &by_default;
  }
};

}  // namespace distforge
