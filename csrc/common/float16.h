#pragma once

#include <cstdint>

#include "common/macros.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace distforge {

// Storage of an IEEE half; arithmetic is float's. Only kernels convert, and the host tests: g++
// before 12 has no _Float16, and what it compiles of the extension needs the storage alone.
struct float16 {
  uint16_t bits;

  float16() = default;

  // To nearest, ties to even.
#if defined(__CUDACC__)
  DISTFORGE_HOST_DEVICE explicit float16(float value)
      : bits(__half_as_ushort(__float2half_rn(value))) {}
  DISTFORGE_HOST_DEVICE explicit operator float() const {
    return __half2float(__ushort_as_half(bits));
  }
#elif defined(__FLT16_MAX__)
  DISTFORGE_HOST_DEVICE explicit float16(float value)
      : bits(__builtin_bit_cast(uint16_t, static_cast<_Float16>(value))) {}
  DISTFORGE_HOST_DEVICE explicit operator float() const {
    return static_cast<float>(__builtin_bit_cast(_Float16, bits));
  }
#endif
};

static_assert(sizeof(float16) == 2);

}  // namespace distforge
