#include <cuda_runtime.h>

#include "common/tensor_table.cuh"
#include "common/vector4.cuh"
#include "orthogonal_update/launch.h"

namespace distforge::orthogonal_update {
namespace {

constexpr int kThreads = 256;

// With the coefficients within the 4 KiB of a kernel's arguments.
template <typename Update, typename Copy>
using Table = TensorTable<Buffers<Update, Copy>, 100>;

template <typename Update, typename Copy>
DISTFORGE_HOST_DEVICE bool aligned(const Buffers<Update, Copy>& b) {
  return aligned_for_vector4(b.weight) && aligned_for_vector4(b.update) &&
         (b.copy == nullptr || aligned_for_vector4(b.copy));
}

template <typename Update, typename Copy, bool kHasCopy>
__device__ __forceinline__ void step_of_four(const Coefficients& c, const Buffers<Update, Copy>& b,
                                             int64_t i) {
  auto w = *reinterpret_cast<Vector4<float>*>(b.weight + i);
  const auto o = *reinterpret_cast<const Vector4<Update>*>(b.update + i);
  Vector4<Copy> copy;
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    w.element[q] = step(c, w.element[q], static_cast<float>(o.element[q]));
    copy.element[q] = Copy(w.element[q]);
  }
  *reinterpret_cast<Vector4<float>*>(b.weight + i) = w;
  if constexpr (kHasCopy) *reinterpret_cast<Vector4<Copy>*>(b.copy + i) = copy;
}

// A block a chunk: fours where the buffers are aligned for them, the rest one by one.
template <typename Update, typename Copy, bool kHasCopy>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const Coefficients c, const __grid_constant__ Table<Update, Copy> table) {
  const int tensor = table.tensor_of(blockIdx.x);
  const Buffers<Update, Copy>& b = table.items[tensor];
  const int64_t begin = table.begin_of(tensor, blockIdx.x);
  const int64_t end = table.end_of(tensor, blockIdx.x);
  const int64_t fours_end = aligned(b) ? end - end % 4 : begin;
#pragma unroll 4
  for (int64_t i = begin + 4 * threadIdx.x; i < fours_end; i += 4 * kThreads) {
    step_of_four<Update, Copy, kHasCopy>(c, b, i);
  }
  for (int64_t i = fours_end + threadIdx.x; i < end; i += kThreads) {
    const float w = step(c, b.weight[i], static_cast<float>(b.update[i]));
    b.weight[i] = w;
    if constexpr (kHasCopy) b.copy[i] = Copy(w);
  }
}

template <typename Update, typename Copy>
void launch_table(const Coefficients& coefficients, const Table<Update, Copy>& table, bool has_copy,
                  cudaStream_t stream) {
  if (table.chunks() == 0) return;
  const auto blocks = static_cast<unsigned>(table.chunks());
  if (has_copy) {
    update_kernel<Update, Copy, true><<<blocks, kThreads, 0, stream>>>(coefficients, table);
  } else {
    update_kernel<Update, Copy, false><<<blocks, kThreads, 0, stream>>>(coefficients, table);
  }
}

}  // namespace

template <typename Update, typename Copy>
const char* launch_cuda(const Coefficients& coefficients, const Buffers<Update, Copy>* all,
                        size_t count, bool has_copy, void* stream) {
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  Table<Update, Copy> table;
  table.clear();
  for (size_t i = 0; i < count; ++i) {
    if (table.push(all[i])) continue;
    launch_table(coefficients, table, has_copy, cuda_stream);
    table.clear();
    table.push(all[i]);
  }
  launch_table(coefficients, table, has_copy, cuda_stream);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#define DISTFORGE_INSTANTIATE(Update, Copy)                                                   \
  template const char* launch_cuda(const Coefficients&, const Buffers<Update, Copy>*, size_t, \
                                   bool, void*);
DISTFORGE_INSTANTIATE(float, float16)
DISTFORGE_INSTANTIATE(float, bfloat16)
DISTFORGE_INSTANTIATE(float16, float16)
DISTFORGE_INSTANTIATE(float16, bfloat16)
DISTFORGE_INSTANTIATE(bfloat16, float16)
DISTFORGE_INSTANTIATE(bfloat16, bfloat16)
#undef DISTFORGE_INSTANTIATE

}  // namespace distforge::orthogonal_update
