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
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,prefer-vector-width=512")

namespace distforge::newton_schulz {
namespace avx512_bf16 {
constexpr int kLanes = 16;
constexpr int kRows = 8;
#define DISTFORGE_DOT_BFLOAT16
#define DISTFORGE_STREAM(to, vector) _mm512_stream_ps(to, (__m512)(vector))
#include "newton_schulz/blocks_body.h"
}  // namespace avx512_bf16

BlockKernel<bfloat16> bfloat16_blocks_avx512() {
  using namespace avx512_bf16;
  return kernel_named<bfloat16>("avx512_bf16");
}

}  // namespace distforge::newton_schulz
#endif
