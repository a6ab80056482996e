#include <cuda_runtime.h>

#include <algorithm>

#include "grokfast/grokfast.h"

namespace distforge::grokfast {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;
constexpr int64_t kMaxBlocks = 65535;

// Elements [0, 4 * num_vectors) as float4, the rest one by one: the first threads take the tail.
template <bool kHasEma, bool kNesterov>
__global__ void __launch_bounds__(kThreads)
    momentum_kernel(Coefficients c, Buffers b, int64_t num_vectors) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = thread; i < num_vectors; i += stride) {
    const float4 g = reinterpret_cast<const float4*>(b.grad)[i];
    float4 h = kHasEma ? reinterpret_cast<float4*>(b.ema)[i] : float4{};
    float4 m = reinterpret_cast<float4*>(b.momentum)[i];
    float4 u;
    u.x = step<kHasEma, kNesterov>(c, g.x, h.x, m.x);
    u.y = step<kHasEma, kNesterov>(c, g.y, h.y, m.y);
    u.z = step<kHasEma, kNesterov>(c, g.z, h.z, m.z);
    u.w = step<kHasEma, kNesterov>(c, g.w, h.w, m.w);
    if constexpr (kHasEma) reinterpret_cast<float4*>(b.ema)[i] = h;
    reinterpret_cast<float4*>(b.momentum)[i] = m;
    reinterpret_cast<float4*>(b.update)[i] = u;
  }
  for (int64_t i = num_vectors * kVector + thread; i < b.numel; i += stride) {
    float h = kHasEma ? b.ema[i] : 0.0f;
    float m = b.momentum[i];
    b.update[i] = step<kHasEma, kNesterov>(c, b.grad[i], h, m);
    b.momentum[i] = m;
    if constexpr (kHasEma) b.ema[i] = h;
  }
}

bool aligned_for_vectors(const Buffers& b) {
  const auto bits = reinterpret_cast<uintptr_t>(b.grad) | reinterpret_cast<uintptr_t>(b.ema) |
                    reinterpret_cast<uintptr_t>(b.momentum) | reinterpret_cast<uintptr_t>(b.update);
  return bits % (kVector * sizeof(float)) == 0;
}

}  // namespace

const char* launch_cuda(const Coefficients& coefficients, const Buffers& buffers, bool nesterov,
                        void* stream) {
  const int64_t num_vectors = aligned_for_vectors(buffers) ? buffers.numel / kVector : 0;
  const int64_t work = std::max(num_vectors, buffers.numel - num_vectors * kVector);
  const int64_t blocks = std::min((work + kThreads - 1) / kThreads, kMaxBlocks);
  dispatch(buffers.ema != nullptr, nesterov, [&](auto has_ema, auto is_nesterov) {
    momentum_kernel<decltype(has_ema)::value, decltype(is_nesterov)::value>
        <<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            coefficients, buffers, num_vectors);
  });
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace distforge::grokfast
