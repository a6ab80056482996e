#include "common/cpu_capability.h"

#ifdef DISTFORGE_X86
#include <immintrin.h>

#include <bit>
#include <cstdint>

#include "newton_schulz/blocks.h"

// From here to the end of the file.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")

namespace distforge::newton_schulz {
namespace avx512 {
constexpr int kLanes = 16;
constexpr int kRows = 8;
#define DISTFORGE_STREAM(to, vector) _mm512_stream_ps(to, (__m512)(vector))
#include "newton_schulz/blocks_body.h"
}  // namespace avx512

BlockKernel<float> float_blocks_avx512() {
  using namespace avx512;
  return kernel_named<float>("float32: avx512");
}

}  // namespace distforge::newton_schulz
#endif
