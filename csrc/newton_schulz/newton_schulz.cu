#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "common/float16.h"
#include "newton_schulz/launch.h"
#include "newton_schulz/prepare.h"
#include "newton_schulz/tile_float.cuh"
#include "newton_schulz/tile_half.cuh"

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

constexpr int64_t kMaxGridY = 65535;

unsigned grid_of(int64_t count) { return static_cast<unsigned>(std::min(count, kMaxGridY)); }

// Blocks of the persistent kernel that run at once, or 0 where it cannot be launched.
template <typename T>
int resident_blocks(int device) {
  int cooperative = 0, processors = 0, blocks = 0;
  if (cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, persistent_kernel<T>, kThreads,
                                                    kSharedBytesOf<T>) != cudaSuccess) {
    return 0;
  }
  return cooperative ? processors * blocks : 0;
}

template <typename T>
cudaError_t run_program(const std::vector<Task>& tasks, const BufferTable& buffers, Shape shape,
                        int64_t batches, int device, cudaStream_t stream) {
  // Where a launch costs as much as a product, and only there: large products fill the GPU alone.
  constexpr int64_t kPersistentOrder = 512;
  const int blocks = shape.n() <= kPersistentOrder ? resident_blocks<T>(device) : 0;
  if (blocks == 0) {
    for (const Task& task : tasks) {
      const dim3 grid(static_cast<unsigned>(tile_count(task)), grid_of(batches));
      product_kernel<T><<<grid, kThreads, kSharedBytesOf<T>, stream>>>(task, buffers, batches);
    }
    return cudaGetLastError();
  }
  for (size_t begin = 0; begin < tasks.size(); begin += kProgramTasks) {
    Program program{};
    program.count = static_cast<int>(std::min<size_t>(kProgramTasks, tasks.size() - begin));
    std::copy_n(tasks.begin() + begin, program.count, program.tasks);
    void* arguments[] = {&program, const_cast<BufferTable*>(&buffers), &batches};
    const cudaError_t error = cudaLaunchCooperativeKernel(
        persistent_kernel<T>, dim3(blocks), dim3(kThreads), arguments, kSharedBytesOf<T>, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t launch(const LaunchArguments& arguments, int device, cudaStream_t stream) {
  const auto& [tasks, buffers, shape, batches, x, parts] = arguments;
  for (const void* kernel : {reinterpret_cast<const void*>(&product_kernel<T>),
                             reinterpret_cast<const void*>(&persistent_kernel<T>)}) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytesOf<T>);
    if (error != cudaSuccess) return error;
  }
  const T* input = static_cast<const T*>(x);
  norm_kernel<T><<<dim3(kNormParts, grid_of(batches)), kNormThreads, 0, stream>>>(
      input, shape.rows * shape.columns, parts, batches);
  // Over the padding too: what a row has beyond the matrix must be zeros.
  const dim3 grid(static_cast<unsigned>(ceil_div(padded_row(shape.columns), kScaleTile)),
                  static_cast<unsigned>(ceil_div(padded_row(shape.rows), kScaleTile)),
                  grid_of(batches));
  scale_kernel<T><<<grid, kScaleThreads, 0, stream>>>(input, shape, parts, buffers, batches);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return run_program<T>(tasks, buffers, shape, batches, device, stream);
}

}  // namespace

const char* launch_newton_schulz(const LaunchArguments& arguments, ElementType type, int device,
                                 void* stream) {
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaErrorInvalidValue;
  switch (type) {
    case ElementType::kFloat32:
      error = launch<float>(arguments, device, cuda_stream);
      break;
    case ElementType::kFloat16:
      error = launch<float16>(arguments, device, cuda_stream);
      break;
    case ElementType::kBFloat16:
      error = launch<bfloat16>(arguments, device, cuda_stream);
      break;
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace distforge::newton_schulz
