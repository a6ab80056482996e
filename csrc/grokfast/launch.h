#pragma once

#include <cstddef>

#include "common/bfloat16.h"
#include "common/float16.h"
#include "grokfast/grokfast.h"

namespace distforge::grokfast {

// Runs the step of all tensors on a CUDA device's stream (grokfast.cu). Returns null, or what CUDA
// complains of.
template <typename Update>
const char* launch_cuda(const Coefficients& coefficients, const Buffers<Update>* all, size_t count,
                        bool has_ema, bool nesterov, void* stream);

}  // namespace distforge::grokfast
