#include "common/cpu_capability.h"

#ifdef DISTFORGE_X86
#include <immintrin.h>

#include <bit>
#include <cstdint>

#include "newton_schulz/blocks.h"

// From here to the end of the file.
#pragma GCC target("avx2,fma")

namespace distforge::newton_schulz {
namespace avx2 {
constexpr int kLanes = 8;
constexpr int kRows = 4;
#define DISTFORGE_STREAM(to, vector) _mm256_stream_ps(to, (__m256)(vector))
#include "newton_schulz/blocks_body.h"
}  // namespace avx2

BlockKernel<float> float_blocks_avx2() {
  using namespace avx2;
  return kernel_named<float>("float32: avx2");
}

}  // namespace distforge::newton_schulz
#endif
