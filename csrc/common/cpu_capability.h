#pragma once

namespace distforge {

enum class CpuCapability { kDefault, kAvx2, kAvx512 };

// The widest instruction set that this processor has, or a narrower one that the environment
// variable ATEN_CPU_CAPABILITY (torch's own: default, avx2, avx512) asks for. Read once.
CpuCapability cpu_capability();

const char* cpu_capability_name();

// Whether there are dot products of bfloat16 (AVX-512 BF16) within that capability.
bool cpu_multiplies_bfloat16();

// Whether there are tiles of bfloat16 (AMX), too, the system lets this process use them, and the
// environment variable ONEDNN_MAX_CPU_ISA (by which torch's own products are limited) does not
// name an older instruction set. Asked for once.
bool cpu_has_amx();

}  // namespace distforge

// The targets of a kernel body, which is written once and compiled for each of them (compiled.h).
// On other processors than x86 the portable one is all there is.
#if defined(__x86_64__) && defined(__GNUC__)
#define DISTFORGE_X86 1
#define DISTFORGE_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define DISTFORGE_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#endif
