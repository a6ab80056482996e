#include "common/cpu_capability.h"

#ifdef DISTFORGE_X86
// GCC 12 finds its own headers' undefined vectors uninitialized (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <bit>
#include <cstdint>

#include "newton_schulz/blocks.h"

// From here to the end of the file.
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,fma,prefer-vector-width=512")

namespace distforge::newton_schulz {
namespace amx_bf16 {
constexpr int kLanes = 16;
// No DISTFORGE_STREAM: 5 to 10% faster through the caches (Sapphire Rapids, two threads).
#define DISTFORGE_AMX
#define DISTFORGE_DOT_BFLOAT16
#include "newton_schulz/blocks_body.h"
}  // namespace amx_bf16

BlockKernel<bfloat16> bfloat16_blocks_amx() {
  using namespace amx_bf16;
  return kernel_named<bfloat16>("amx_bf16");
}

}  // namespace distforge::newton_schulz
#endif
