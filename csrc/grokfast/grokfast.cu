#include <cuda_runtime.h>

#include "common/launch_error.cuh"
#include "common/tensor_table.cuh"
#include "common/vector4.cuh"
#include "grokfast/launch.h"

namespace distforge::grokfast {
namespace {

constexpr int kThreads = 256;

// With the coefficients within the 4 KiB of a kernel's arguments.
constexpr int kCapacity = 80;
template <typename Update>
using Table = TensorTable<Buffers<Update>, kCapacity>;

template <typename Update>
DISTFORGE_HOST_DEVICE bool aligned(const Buffers<Update>& b) {
  return aligned_for_vector4(b.grad) && aligned_for_vector4(b.momentum) &&
         aligned_for_vector4(b.update) && (b.ema == nullptr || aligned_for_vector4(b.ema));
}

template <typename Update, bool kHasEma, bool kNesterov>
__device__ __forceinline__ void step_of_four(const Coefficients& c, const Buffers<Update>& b,
                                             int64_t i) {
  const auto g = *reinterpret_cast<const Vector4<float>*>(b.grad + i);
  auto m = *reinterpret_cast<Vector4<float>*>(b.momentum + i);
  Vector4<float> h = {};
  if constexpr (kHasEma) h = *reinterpret_cast<Vector4<float>*>(b.ema + i);
  Vector4<Update> u;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    u.element[q] = Update(step<kHasEma, kNesterov>(c, g.element[q], h.element[q], m.element[q]));
  }
  if constexpr (kHasEma) *reinterpret_cast<Vector4<float>*>(b.ema + i) = h;
  *reinterpret_cast<Vector4<float>*>(b.momentum + i) = m;
  *reinterpret_cast<Vector4<Update>*>(b.update + i) = u;
}

// A block a chunk. Fours where all buffers are aligned for them (a chunk begins at a multiple of
// four), the rest one by one.
template <typename Update, bool kHasEma, bool kNesterov>
__global__ void __launch_bounds__(kThreads)
    momentum_kernel(const Coefficients c, const __grid_constant__ Table<Update> table) {
  const int tensor = table.tensor_of(blockIdx.x);
  const Buffers<Update>& b = table.items[tensor];
  const int64_t begin = table.begin_of(tensor, blockIdx.x);
  const int64_t end = table.end_of(tensor, blockIdx.x);
  const int64_t fours_end = aligned(b) ? end - end % 4 : begin;
#pragma unroll 4
  for (int64_t i = begin + 4 * threadIdx.x; i < fours_end; i += 4 * kThreads) {
    step_of_four<Update, kHasEma, kNesterov>(c, b, i);
  }
  for (int64_t i = fours_end + threadIdx.x; i < end; i += kThreads) {
    float h = kHasEma ? b.ema[i] : 0.0f;
    float m = b.momentum[i];
    b.update[i] = Update(step<kHasEma, kNesterov>(c, b.grad[i], h, m));
    b.momentum[i] = m;
    if constexpr (kHasEma) b.ema[i] = h;
  }
}

}  // namespace

template <typename Update>
const char* launch_cuda(const Coefficients& coefficients, const Buffers<Update>* all, size_t count,
                        bool has_ema, bool nesterov, void* stream) {
  for_each_table<Buffers<Update>, kCapacity>(all, count, [&](const Table<Update>& table) {
    dispatch(has_ema, nesterov, [&](auto filtered, auto is_nesterov) {
      momentum_kernel<Update, decltype(filtered)::value, decltype(is_nesterov)::value>
          <<<static_cast<unsigned>(table.chunks()), kThreads, 0,
             static_cast<cudaStream_t>(stream)>>>(coefficients, table);
    });
  });
  return message_of(cudaGetLastError());
}

template const char* launch_cuda(const Coefficients&, const Buffers<float>*, size_t, bool, bool,
                                 void*);
template const char* launch_cuda(const Coefficients&, const Buffers<float16>*, size_t, bool, bool,
                                 void*);
template const char* launch_cuda(const Coefficients&, const Buffers<bfloat16>*, size_t, bool, bool,
                                 void*);

}  // namespace distforge::grokfast
