#pragma once

#include <cstdint>

#include "common/macros.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace distforge {

// Storage of an IEEE half; arithmetic is float's.
struct float16 {
  uint16_t bits;

  float16() = default;

  // To nearest, ties to even.
  DISTFORGE_HOST_DEVICE explicit float16(float value) {
#ifdef __CUDACC__
    bits = __half_as_ushort(__float2half_rn(value));
#else
    bits = __builtin_bit_cast(uint16_t, static_cast<_Float16>(value));
#endif
  }

  DISTFORGE_HOST_DEVICE explicit operator float() const {
#ifdef __CUDACC__
    return __half2float(__ushort_as_half(bits));
#else
    return static_cast<float>(__builtin_bit_cast(_Float16, bits));
#endif
  }
};

static_assert(sizeof(float16) == 2);

}  // namespace distforge
