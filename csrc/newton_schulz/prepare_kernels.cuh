#pragma once

#include "newton_schulz/launch.h"
#include "newton_schulz/prepare.h"

// Norm and scaling of the input on the GPU.

namespace distforge::newton_schulz {
namespace {

template <typename T>
__global__ void __launch_bounds__(kNormThreads)
    norm_kernel(const T* x, int64_t count, double* parts, int64_t batches) {
  __shared__ double shared[kNormThreads];
  for (int64_t batch = blockIdx.y; batch < batches; batch += gridDim.y) {
    shared[threadIdx.x] = squares_of_thread(x + batch * count, count, blockIdx.x, threadIdx.x);
    for (int width = kNormThreads / 2; width > 0; width /= 2) {
      __syncthreads();
      if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    }
    if (threadIdx.x == 0) parts[batch * kNormParts + blockIdx.x] = shared[0];
    __syncthreads();
  }
}

// X / norm into the buffer that has the input's orientation and, turned, into the other.
template <typename T>
__global__ void __launch_bounds__(kScaleThreads)
    scale_kernel(const T* x, Shape shape, const double* parts,
                 const __grid_constant__ BufferTable buffers, int64_t batches) {
  __shared__ T tile[kScaleTile][kScaleTile + 1];
  const bool tall = shape.rows > shape.columns;
  const BatchView same = buffers.view[tall ? kXt : kX], turned = buffers.view[tall ? kX : kXt];
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kScaleTile;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) * kScaleTile;
  const int lane = scale_column(threadIdx.x);
  for (int64_t batch = blockIdx.z; batch < batches; batch += gridDim.z) {
    const double factor = inverse_norm(parts + batch * kNormParts);
    const T* from = x + batch * shape.rows * shape.columns;
    T* to = static_cast<T*>(same.data) + batch * same.stride;
    T* to_turned = static_cast<T*>(turned.data) + batch * turned.stride;
    for (int i = 0; i < kScaleTile / 8; ++i) {
      const int row = scale_row(threadIdx.x, i);
      const int64_t r = row0 + row, c = column0 + lane;
      T value = T(0.0f);
      if (r < shape.rows && c < shape.columns)
        value = T(scaled(from[r * shape.columns + c], factor));
      tile[row][lane] = value;
      if (r < shape.rows && c < same.ld) to[r * same.ld + c] = value;
    }
    __syncthreads();
    for (int i = 0; i < kScaleTile / 8; ++i) {
      const int row = scale_row(threadIdx.x, i);
      const int64_t r = column0 + row, c = row0 + lane;
      if (r < shape.columns && c < turned.ld) to_turned[r * turned.ld + c] = tile[lane][row];
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace distforge::newton_schulz
