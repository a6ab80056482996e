#include <cuda_runtime.h>

#include "common/launch_error.cuh"
#include "common/tensor_table.cuh"
#include "common/vector4.cuh"
#include "orthogonal_update/launch.h"

namespace distforge::orthogonal_update {
namespace {

constexpr int kThreads = 256;

// With the coefficients within the 4 KiB of a kernel's arguments.
constexpr int kCapacity = 100;
template <typename Update>
using Table = TensorTable<Buffers<Update>, kCapacity>;

template <typename Update>
DISTFORGE_HOST_DEVICE bool aligned(const Buffers<Update>& b) {
  return aligned_for_vector4(b.weight) && aligned_for_vector4(b.update);
}

template <typename Update>
__device__ __forceinline__ void step_of_four(const Coefficients& c, const Buffers<Update>& b,
                                             int64_t i) {
  auto w = *reinterpret_cast<Vector4<float>*>(b.weight + i);
  const auto o = *reinterpret_cast<const Vector4<Update>*>(b.update + i);
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    w.element[q] = step(c, w.element[q], static_cast<float>(o.element[q]));
  }
  *reinterpret_cast<Vector4<float>*>(b.weight + i) = w;
}

// A block a chunk: fours where the buffers are aligned for them, the rest one by one.
template <typename Update>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const Coefficients c, const __grid_constant__ Table<Update> table) {
  const int tensor = table.tensor_of(blockIdx.x);
  const Buffers<Update>& b = table.items[tensor];
  const int64_t begin = table.begin_of(tensor, blockIdx.x);
  const int64_t end = table.end_of(tensor, blockIdx.x);
  const int64_t fours_end = aligned(b) ? end - end % 4 : begin;
#pragma unroll 4
  for (int64_t i = begin + 4 * threadIdx.x; i < fours_end; i += 4 * kThreads) {
    step_of_four<Update>(c, b, i);
  }
  for (int64_t i = fours_end + threadIdx.x; i < end; i += kThreads) {
    b.weight[i] = step(c, b.weight[i], static_cast<float>(b.update[i]));
  }
}

}  // namespace

template <typename Update>
const char* launch_cuda(const Coefficients& coefficients, const Buffers<Update>* all, size_t count,
                        void* stream) {
  for_each_table<Buffers<Update>, kCapacity>(all, count, [&](const Table<Update>& table) {
    update_kernel<Update>
        <<<static_cast<unsigned>(table.chunks()), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            coefficients, table);
  });
  return message_of(cudaGetLastError());
}

template const char* launch_cuda(const Coefficients&, const Buffers<float>*, size_t, void*);
template const char* launch_cuda(const Coefficients&, const Buffers<float16>*, size_t, void*);
template const char* launch_cuda(const Coefficients&, const Buffers<bfloat16>*, size_t, void*);

}  // namespace distforge::orthogonal_update
