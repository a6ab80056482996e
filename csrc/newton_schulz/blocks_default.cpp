#include <bit>
#include <cstdint>

#include "common/cpu_capability.h"
#include "newton_schulz/blocks.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace distforge::newton_schulz {
namespace portable {
constexpr int kLanes = 4;
constexpr int kRows = 4;
#include "newton_schulz/blocks_body.h"
}  // namespace portable

BlockKernel<float> float_blocks_default() {
  using namespace portable;
  return kernel_named<float>("float32: portable");
}

const BlockKernel<float>& float_blocks() {
  static const BlockKernel<float> chosen = [] {
#ifdef DISTFORGE_X86
    if (cpu_capability() == CpuCapability::kAvx512) return float_blocks_avx512();
    if (cpu_capability() == CpuCapability::kAvx2) return float_blocks_avx2();
#endif
    return float_blocks_default();
  }();
  return chosen;
}

const BlockKernel<bfloat16>* bfloat16_blocks() {
#ifdef DISTFORGE_X86
  if (cpu_multiplies_bfloat16()) {
    static const BlockKernel<bfloat16> kernel =
        cpu_has_amx() ? bfloat16_blocks_amx() : bfloat16_blocks_avx512();
    return &kernel;
  }
#endif
  return nullptr;
}

}  // namespace distforge::newton_schulz
