#pragma once

#include <cstddef>

#include "common/bfloat16.h"
#include "common/float16.h"
#include "orthogonal_update/orthogonal_update.h"

namespace distforge::orthogonal_update {

// Updates all tensors on a CUDA device's stream (orthogonal_update.cu). Returns null, or what CUDA
// complains of.
template <typename Update>
const char* launch_cuda(const Coefficients& coefficients, const Buffers<Update>* all, size_t count,
                        void* stream);

}  // namespace distforge::orthogonal_update
