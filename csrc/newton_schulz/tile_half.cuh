#pragma once

#include "newton_schulz/symmetric_gemm.cuh"

// A tile of 16-bit elements on the tensor cores: mma.sync m16n8k16, float32 sums. Eight warps of
// 64 x 32 elements; a stage of shared memory holds 32 elements of the depth of A and of B.

namespace distforge::newton_schulz::half_tile {

constexpr int kDepth = 32;
// Rows in shared memory are 80 bytes apart: aligned for 16-byte copies, and the eight rows that a
// warp reads a fragment from begin in banks 0, 20, 8, 28, 16, 4, 24, 12: no two share one.
constexpr int kPitch = kDepth + 8;
constexpr int kStages = 3;
constexpr int kVector = 8;  // elements in 16 bytes
constexpr int kWarpRows = 64, kWarpColumns = 32;
constexpr int kRowFragments = kWarpRows / 16, kColumnFragments = kWarpColumns / 8;
constexpr int kStageElements = 2 * kTile * kPitch;
constexpr int kSharedBytes = kStages * kStageElements * 2;
constexpr int kCopies = kTile * kDepth / kVector / kThreads;  // of each factor, by each thread

struct Sums {
  float value[kRowFragments][kColumnFragments][4];
};

struct Fragments {
  uint32_t a[kRowFragments][4];
  uint32_t b[kColumnFragments][2];
};

// The `index`-th 16 bytes that a thread copies of a factor's stage: row in the tile and element in
// the row.
struct Copy {
  int row, element;
};

DISTFORGE_HOST_DEVICE Copy copy_at(int thread, int index) {
  constexpr int kVectors = kDepth / kVector;
  const int vector = thread + index * kThreads;
  return {vector / kVectors, vector % kVectors * kVector};
}

DISTFORGE_HOST_DEVICE int shared_offset(int row, int element) { return row * kPitch + element; }

// First row and column, within the tile, of a warp's part.
DISTFORGE_HOST_DEVICE int warp_row(int warp) { return warp / 4 * kWarpRows; }
DISTFORGE_HOST_DEVICE int warp_column(int warp) { return warp % 4 * kWarpColumns; }

// Where the words of a lane's fragments lie (PTX manual, "Matrix Fragments for mma.m16n8k16"): word
// r of A holds two elements of row lane / 4 (+ 8 for odd r) from depth 2 (lane % 4) (+ 8 for r >=
// 2); word r of B two elements of column lane / 4 from depth 2 (lane % 4) + 8 r.
DISTFORGE_HOST_DEVICE int a_offset(int warp, int lane, int fragment, int word, int k) {
  return shared_offset(warp_row(warp) + fragment * 16 + lane / 4 + word % 2 * 8,
                       k + lane % 4 * 2 + word / 2 * 8);
}
DISTFORGE_HOST_DEVICE int b_offset(int warp, int lane, int fragment, int word, int k) {
  return shared_offset(warp_column(warp) + fragment * 8 + lane / 4, k + lane % 4 * 2 + word * 8);
}
// Sum r of C is row lane / 4 (+ 8 for r >= 2), column 2 (lane % 4) + r % 2.
DISTFORGE_HOST_DEVICE int sum_row(int warp, int lane, int fragment, int r) {
  return warp_row(warp) + fragment * 16 + lane / 4 + r / 2 * 8;
}
DISTFORGE_HOST_DEVICE int sum_column(int warp, int lane, int fragment, int r) {
  return warp_column(warp) + fragment * 8 + lane % 4 * 2 + r % 2;
}

// `a` and `b` are a stage's two halves of shared memory, of any 16-bit type.
DISTFORGE_HOST_DEVICE void load_fragments(const uint16_t* a, const uint16_t* b, int thread, int k,
                                          Fragments& fragments) {
  const int warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      fragments.a[i][word] =
          *reinterpret_cast<const uint32_t*>(a + a_offset(warp, lane, i, word, k));
    }
  }
#pragma unroll
  for (int j = 0; j < kColumnFragments; ++j) {
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      fragments.b[j][word] =
          *reinterpret_cast<const uint32_t*>(b + b_offset(warp, lane, j, word, k));
    }
  }
}

template <typename T>
DISTFORGE_HOST_DEVICE void store_sums(const TileTarget<T>& target, Block block, int thread,
                                      const Sums& sums) {
  const int warp = thread / 32, lane = thread % 32;
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnFragments; ++j) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        target.store(block.row * kTile + sum_row(warp, lane, i, r),
                     block.column * kTile + sum_column(warp, lane, j, r), sums.value[i][j][r]);
      }
    }
  }
}

}  // namespace distforge::newton_schulz::half_tile
