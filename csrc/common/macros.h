#pragma once

// Arithmetic that both compilers see, so that a host test covers what a kernel computes.
#ifdef __CUDACC__
#define DISTFORGE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DISTFORGE_HOST_DEVICE inline __attribute__((always_inline))
#endif
