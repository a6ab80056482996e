#pragma once

#include <cooperative_groups.h>

#include <type_traits>

#include "common/float16.h"
#include "newton_schulz/launch.h"
#include "newton_schulz/tile_float.cuh"
#include "newton_schulz/tile_half.cuh"

// The products on the GPU: tiles, and the kernels that walk through them.

namespace distforge::newton_schulz {
namespace {

// 16 bytes to shared memory, zeros where `valid` is false: asynchronous from sm_80 on.
__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(global),
               "r"(bytes)
               : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Until all but the last `kPending` groups of copies have arrived.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// sums += A B for one fragment pair. bfloat16 on tensor cores needs sm_80; the dispatcher keeps it
// from older ones.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  if constexpr (std::is_same_v<T, float16>) {
    // Two halves of the depth: words 0 and 1 of A with word 0 of B, words 2 and 3 with word 1.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
          "{%0,%1,%2,%3};\n"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
  }
#endif
}

// The 16-bit elements of one stage of both factors.
template <typename T>
__device__ __forceinline__ void load_stage(const Task& task, const BufferTable& buffers,
                                           int64_t batch, Block block, int64_t k, uint16_t* stage) {
  using namespace half_tile;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const uint8_t index = side == 0 ? task.a : task.bt;
    const int64_t ld = buffers.view[index].ld;
    const int64_t first = (side == 0 ? block.row : block.column) * kTile;
    const int64_t rows = side == 0 ? task.m : task.n;
    const T* from = matrix_of<const T>(buffers, index, batch);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const Copy copy = copy_at(threadIdx.x, i);
      const int64_t row = first + copy.row;
      const bool valid = row < rows;
      copy_16_bytes(stage + side * kTile * kPitch + shared_offset(copy.row, copy.element),
                    from + (valid ? row : 0) * ld + k + copy.element, valid);
    }
  }
}

template <typename T>
__device__ __forceinline__ void run_half_tile(const Task& task, const BufferTable& buffers,
                                              int64_t batch, Block block, uint16_t* shared) {
  using namespace half_tile;
  Sums sums = {};
  const int64_t count = padded_row(task.k) / kDepth;
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < count) {
      load_stage<T>(task, buffers, batch, block, stage * kDepth, shared + stage * kStageElements);
    }
    commit_copies();
  }
  for (int64_t step = 0; step < count; ++step) {
    wait_for_copies<kStages - 2>();
    // Also: the stage that is filled next has been read by everyone.
    __syncthreads();
    const int64_t next = step + kStages - 1;
    if (next < count) {
      load_stage<T>(task, buffers, batch, block, next * kDepth,
                    shared + next % kStages * kStageElements);
    }
    commit_copies();
    const uint16_t* a = shared + step % kStages * kStageElements;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      Fragments fragments;
      load_fragments(a, a + kTile * kPitch, threadIdx.x, k, fragments);
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
        for (int j = 0; j < kColumnFragments; ++j) {
          multiply_add<T>(sums.value[i][j], fragments.a[i], fragments.b[j]);
        }
      }
    }
  }
  store_sums(TileTarget<T>(task, buffers, batch, block), block, threadIdx.x, sums);
  // A persistent block goes on to fill the stages for its next tile.
  __syncthreads();
}

__device__ __forceinline__ void run_float_tile(const Task& task, const BufferTable& buffers,
                                               int64_t batch, Block block, float* shared) {
  using namespace float_tile;
  Sums sums = {};
  const int64_t count = padded_row(task.k) / kDepth;
  for (int64_t step = 0; step < count; ++step) {
    float* stage = shared + step % kStages * kStageElements;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const uint8_t index = side == 0 ? task.a : task.bt;
      const int64_t ld = buffers.view[index].ld;
      const int64_t first = (side == 0 ? block.row : block.column) * kTile;
      const int64_t rows = side == 0 ? task.m : task.n;
      const float* from = matrix_of<const float>(buffers, index, batch);
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const Copy copy = copy_at(threadIdx.x, i);
        const int64_t row = first + copy.row;
        float4 four = {};
        if (row < rows) {
          four = *reinterpret_cast<const float4*>(from + row * ld + step * kDepth + copy.element);
        }
        float* to = stage + side * kDepth * kPitch;
        to[shared_offset(copy.element, copy.row)] = four.x;
        to[shared_offset(copy.element + 1, copy.row)] = four.y;
        to[shared_offset(copy.element + 2, copy.row)] = four.z;
        to[shared_offset(copy.element + 3, copy.row)] = four.w;
      }
    }
    // One barrier a step is enough: a stage is filled again only after the next one, which no
    // thread passes before all have read this.
    __syncthreads();
    multiply(stage, stage + kDepth * kPitch, threadIdx.x, sums);
  }
  store_sums(TileTarget<float>(task, buffers, batch, block), block, threadIdx.x, sums);
  __syncthreads();
}

template <typename T>
constexpr int kSharedBytesOf =
    std::is_same_v<T, float> ? float_tile::kSharedBytes : half_tile::kSharedBytes;

template <typename T>
__device__ __forceinline__ void run_tile(const Task& task, const BufferTable& buffers,
                                         int64_t batch, int64_t index) {
  extern __shared__ uint4 shared[];
  const Block block = tile_at(task, index);
  if constexpr (std::is_same_v<T, float>) {
    run_float_tile(task, buffers, batch, block, reinterpret_cast<float*>(shared));
  } else {
    run_half_tile<T>(task, buffers, batch, block, reinterpret_cast<uint16_t*>(shared));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ Task task, const __grid_constant__ BufferTable buffers,
                   int64_t batches) {
  for (int64_t batch = blockIdx.y; batch < batches; batch += gridDim.y) {
    run_tile<T>(task, buffers, batch, blockIdx.x);
  }
}

// All products of a program for all matrices; blocks meet after each product.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    persistent_kernel(const __grid_constant__ Program program,
                      const __grid_constant__ BufferTable buffers, int64_t batches) {
  const auto grid = cooperative_groups::this_grid();
  for (int number = 0; number < program.count; ++number) {
    const Task& task = program.tasks[number];
    const int64_t tiles = tile_count(task);
    for (int64_t i = blockIdx.x; i < tiles * batches; i += gridDim.x) {
      run_tile<T>(task, buffers, i / tiles, i % tiles);
    }
    if (number + 1 < program.count) grid.sync();
  }
}

}  // namespace
}  // namespace distforge::newton_schulz
