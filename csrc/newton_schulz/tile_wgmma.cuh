#pragma once

#include "newton_schulz/symmetric_gemm.cuh"

// A tile of 16-bit elements as Hopper computes it (sm_90a): TMA fills stages of shared memory in
// swizzled rows, two warpgroups multiply 64 x 128 elements each by wgmma m64n128k16, float32 sums.
// As in symmetric_gemm.cuh, all but the instructions runs on the host: tests/native/wgmma_test.cpp.

namespace distforge::newton_schulz::wgmma_tile {

constexpr int kDepth = 64;
constexpr int kRowBytes = kDepth * 2;  // what a swizzle of 128 bytes spans
// Two blocks share a processor, so that one multiplies while the other stores: 2 * 3 * 32 KiB.
constexpr int kStages = 3;
constexpr int kFactorBytes = kTile * kRowBytes;
constexpr int kStageBytes = 2 * kFactorBytes;
constexpr int kWarps = kThreads / 32;  // each releases a stage for itself
constexpr int kGroupThreads = 128;
constexpr int kGroups = kThreads / kGroupThreads;
constexpr int kGroupRows = kTile / kGroups;
constexpr int kInstructionDepth = 16;
constexpr int kSums = kGroupRows * kTile / kGroupThreads;  // of a thread
// The swizzle of 128 bytes mixes the number of 16 bytes among 128 with that of 128 bytes among this
// many, so that a column of eight rows lies in all banks. TMA writes and wgmma reads it by the bits
// of the address: a factor has to begin at a multiple.
constexpr int kAlignment = 1024;
constexpr int kBarrierBytes = 2 * kStages * 8;
constexpr int kSharedBytes = kAlignment + kStages * kStageBytes + kBarrierBytes;

// PTX manual, "Matrix Descriptor Format": the address and the stride from eight rows to the next
// eight, in units of 16 bytes; swizzle mode 1 is that of 128 bytes, with which the leading offset
// is not used.
DISTFORGE_HOST_DEVICE uint64_t matrix_descriptor(uint32_t address) {
  constexpr uint64_t kEightRows = 8 * kRowBytes / 16, kSwizzle128 = 1;
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

DISTFORGE_HOST_DEVICE uint32_t stage_address(uint32_t stages, int step) {
  return stages + static_cast<uint32_t>(step % kStages * kStageBytes);
}

// The factors of the `part`-th instruction of a stage, for a warpgroup.
DISTFORGE_HOST_DEVICE uint64_t a_descriptor(uint32_t stage, int group, int part) {
  return matrix_descriptor(stage + group * kGroupRows * kRowBytes + part * kInstructionDepth * 2);
}
DISTFORGE_HOST_DEVICE uint64_t b_descriptor(uint32_t stage, int part) {
  return matrix_descriptor(stage + kFactorBytes + part * kInstructionDepth * 2);
}

// Sum r of a thread (PTX manual, "Matrix Fragments for wgmma.mma_async.m64nNk16", accumulator D).
DISTFORGE_HOST_DEVICE int sum_row(int thread, int r) {
  return thread / 32 * 16 + thread % 32 / 4 + r / 2 % 2 * 8;
}
DISTFORGE_HOST_DEVICE int sum_column(int thread, int r) {
  return r / 4 * 8 + thread % 4 * 2 + r % 2;
}
static_assert(kGroupRows == 64);  // else sum_row would not go on from one warpgroup to the next

// The steps through the depth, as each thread takes them. A stage is filled again once every warp
// has released it, which it does when the products that read it are done: those of the step before,
// while those of this step run.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <typename Operations>
DISTFORGE_HOST_DEVICE void run_steps(Operations& on, int count) {
  for (int step = 0; step < kStages && step < count; ++step) on.fill(step);
  for (int step = 0; step < count; ++step) {
    on.wait_until_filled(step);
    on.start_products(step);
    on.template wait_for_products<1>();
    if (step == 0) continue;
    on.release(step - 1);
    const int next = step - 1 + kStages;
    if (next < count) {
      on.wait_until_released(step - 1);
      on.fill(next);
    }
  }
  on.template wait_for_products<0>();
}

// A barrier's phase ends when all have arrived; who waits names the parity of the phase. That of a
// stage is its number among the fillings of this stage.
DISTFORGE_HOST_DEVICE uint32_t parity_of(int step) { return step / kStages & 1; }

}  // namespace distforge::newton_schulz::wgmma_tile
