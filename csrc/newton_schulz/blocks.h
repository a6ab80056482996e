#pragma once

#include "common/bfloat16.h"
#include "newton_schulz/product.h"

namespace distforge::newton_schulz {

// One function per instruction set (blocks_*.cpp). Only what the processor has may be called.
BlockKernel<float> float_blocks_default();
BlockKernel<float> float_blocks_avx2();
BlockKernel<float> float_blocks_avx512();
BlockKernel<bfloat16> bfloat16_blocks_avx512();
BlockKernel<bfloat16> bfloat16_blocks_amx();

// The best for this processor. There is none for bfloat16 where the processor does not multiply
// it: float32 is as fast there, and more exact.
const BlockKernel<float>& float_blocks();
const BlockKernel<bfloat16>* bfloat16_blocks();

}  // namespace distforge::newton_schulz
