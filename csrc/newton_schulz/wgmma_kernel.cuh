#pragma once

#include <cuda.h>

#include <type_traits>

#include "common/bfloat16.h"
#include "newton_schulz/store_staged.cuh"
#include "newton_schulz/tile_wgmma.cuh"

// The products of large matrices on Hopper: a block for each tile. The kernel is empty for other
// architectures, and launched on none of them.

namespace distforge::newton_schulz {
namespace {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// sums += A B over 16 elements of the depth; it is done when wgmma.wait_group says so.
#define DISTFORGE_WGMMA(TYPE)                                                                      \
  asm volatile(                                                                                    \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE                                 \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,"       \
      "%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,"       \
      "%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "         \
      "%64, %65, 1, 1, 1, 0, 0;\n"                                                                 \
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3]), "+f"(s[4]), "+f"(s[5]), "+f"(s[6]),        \
        "+f"(s[7]), "+f"(s[8]), "+f"(s[9]), "+f"(s[10]), "+f"(s[11]), "+f"(s[12]), "+f"(s[13]),    \
        "+f"(s[14]), "+f"(s[15]), "+f"(s[16]), "+f"(s[17]), "+f"(s[18]), "+f"(s[19]), "+f"(s[20]), \
        "+f"(s[21]), "+f"(s[22]), "+f"(s[23]), "+f"(s[24]), "+f"(s[25]), "+f"(s[26]), "+f"(s[27]), \
        "+f"(s[28]), "+f"(s[29]), "+f"(s[30]), "+f"(s[31]), "+f"(s[32]), "+f"(s[33]), "+f"(s[34]), \
        "+f"(s[35]), "+f"(s[36]), "+f"(s[37]), "+f"(s[38]), "+f"(s[39]), "+f"(s[40]), "+f"(s[41]), \
        "+f"(s[42]), "+f"(s[43]), "+f"(s[44]), "+f"(s[45]), "+f"(s[46]), "+f"(s[47]), "+f"(s[48]), \
        "+f"(s[49]), "+f"(s[50]), "+f"(s[51]), "+f"(s[52]), "+f"(s[53]), "+f"(s[54]), "+f"(s[55]), \
        "+f"(s[56]), "+f"(s[57]), "+f"(s[58]), "+f"(s[59]), "+f"(s[60]), "+f"(s[61]), "+f"(s[62]), \
        "+f"(s[63])                                                                                \
      : "l"(a), "l"(b))

template <typename T>
__device__ __forceinline__ void multiply_add(float (&s)[wgmma_tile::kSums], uint64_t a,
                                             uint64_t b) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    DISTFORGE_WGMMA("bf16");
  } else {
    DISTFORGE_WGMMA("f16");
  }
}

// Barriers in shared memory, by address.
__device__ __forceinline__ void initialize_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
               : "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// An error after seconds, where it would be microseconds if all went well, rather than a hang.
__device__ __forceinline__ void wait_for(uint32_t barrier, uint32_t parity) {
  for (int attempt = 0; attempt < 1 << 24; ++attempt) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    if (done) return;
  }
  __trap();
}

// What wgmma_tile::run_steps asks for, in PTX.
template <typename T>
struct DeviceOperations {
  const CUtensorMap *a, *bt;
  int first_row, first_column, batch;
  uint32_t stages, barriers;
  float (&sums)[wgmma_tile::kSums];

  __device__ __forceinline__ uint32_t filled(int step) const {
    return barriers + step % wgmma_tile::kStages * 16;
  }
  __device__ __forceinline__ uint32_t released(int step) const { return filled(step) + 8; }

  __device__ __forceinline__ void copy_box(const CUtensorMap* map, uint32_t to, int k, int row,
                                           uint32_t barrier) const {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];\n" ::"r"(to),
        "l"(map), "r"(k), "r"(row), "r"(batch), "r"(barrier)
        : "memory");
  }

  __device__ __forceinline__ void fill(int step) const {
    using namespace wgmma_tile;
    if (threadIdx.x != 0) return;
    const uint32_t stage = stage_address(stages, step);
    arrive_expecting(filled(step), kStageBytes);
    copy_box(a, stage, step * kDepth, first_row, filled(step));
    copy_box(bt, stage + kFactorBytes, step * kDepth, first_column, filled(step));
  }
  __device__ __forceinline__ void wait_until_filled(int step) const {
    wait_for(filled(step), wgmma_tile::parity_of(step));
  }
  __device__ __forceinline__ void start_products(int step) {
    using namespace wgmma_tile;
    const uint32_t stage = stage_address(stages, step);
    const int group = threadIdx.x / kGroupThreads;
    __syncwarp();  // after waits that threads leave one by one; a warp multiplies as one
    asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#pragma unroll
    for (int part = 0; part < kDepth / kInstructionDepth; ++part) {
      multiply_add<T>(sums, a_descriptor(stage, group, part), b_descriptor(stage, part));
    }
    asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
  }
  template <int kPending>
  __device__ __forceinline__ void wait_for_products() const {
    __syncwarp();
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
  }
  __device__ __forceinline__ void release(int step) const {
    if (threadIdx.x % 32 == 0) arrive(released(step));
  }
  __device__ __forceinline__ void wait_until_released(int step) const {
    if (threadIdx.x == 0) wait_for(released(step), wgmma_tile::parity_of(step));
  }
};

template <typename T>
__device__ __forceinline__ void run_wgmma_tile(const CUtensorMap& a, const CUtensorMap& bt,
                                               const Task& task, const BufferTable& buffers,
                                               int64_t batch, Block block) {
  using namespace wgmma_tile;
  extern __shared__ unsigned char unaligned[];
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(unaligned));
  const uint32_t stages = (address + kAlignment - 1) / kAlignment * kAlignment;
  float sums[kSums] = {};
  DeviceOperations<T> operations{&a,
                                 &bt,
                                 static_cast<int>(block.row * kTile),
                                 static_cast<int>(block.column * kTile),
                                 static_cast<int>(batch),
                                 stages,
                                 stages + kStages * kStageBytes,
                                 sums};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      initialize_barrier(operations.filled(stage), 1);
      initialize_barrier(operations.released(stage), kWarps);
    }
    // The copies' unit sees the barriers by another way than the threads.
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
  }
  __syncthreads();
  run_steps(operations, static_cast<int>(ceil_div(padded_row(task.k), kDepth)));
  // All stages have been read: their place takes the sums.
  __syncthreads();
  static_assert(staged::kBytes <= kStages * kStageBytes);
  float* const results = reinterpret_cast<float*>(unaligned + (stages - address));
#pragma unroll
  for (int r = 0; r < kSums; r += 2) {
    float* to = results + sum_row(threadIdx.x, r) * staged::kPitch + sum_column(threadIdx.x, r);
    *reinterpret_cast<float2*>(to) = float2{sums[r], sums[r + 1]};
  }
  const TileTarget<T> target(task, buffers, batch, block);
  __syncthreads();
  staged::store_rows(target, block, threadIdx.x, results);
  __syncthreads();
  staged::store_columns(target, block, threadIdx.x, results);
}

#endif  // __CUDA_ARCH_FEAT_SM90_ALL

template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    wgmma_kernel(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap bt,
                 const __grid_constant__ Task task, const __grid_constant__ BufferTable buffers) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  const int64_t tiles = tile_count(task), number = blockIdx.x;
  run_wgmma_tile<T>(a, bt, task, buffers, number / tiles, tile_at(task, number % tiles));
#endif
}

}  // namespace
}  // namespace distforge::newton_schulz
