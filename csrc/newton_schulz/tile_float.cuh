#pragma once

#include "newton_schulz/symmetric_gemm.cuh"

// A tile of float32 elements on the ordinary cores: each thread sums 8 x 8 of them. Exact float32,
// not TF32, and the only way where there are no tensor cores (GTX 16).

namespace distforge::newton_schulz::float_tile {

constexpr int kDepth = 16;
constexpr int kSide = 8;  // rows and columns of a thread
// Shared memory holds a stage by depth, so that a thread reads its rows as vectors.
constexpr int kPitch = kTile + 4;
constexpr int kStageElements = 2 * kDepth * kPitch;
constexpr int kStages = 2;
constexpr int kSharedBytes = kStages * kStageElements * 4;
constexpr int kVector = 4;
constexpr int kCopies = kTile * kDepth / kVector / kThreads;  // of each factor, by each thread

struct Sums {
  float value[kSide][kSide];
};

struct Copy {
  int row, element;
};

// Neighbouring threads take neighbouring rows: what they scatter over the depth then falls into
// different banks.
DISTFORGE_HOST_DEVICE Copy copy_at(int thread, int index) {
  const int vector = thread + index * kThreads;
  return {vector % kTile, vector / kTile * kVector};
}

DISTFORGE_HOST_DEVICE int shared_offset(int depth, int row) { return depth * kPitch + row; }

// The i-th row (or column) of a thread: two runs of four, half a tile apart.
DISTFORGE_HOST_DEVICE int row_of(int thread, int i) {
  return thread / 16 * 4 + i / 4 * (kTile / 2) + i % 4;
}
DISTFORGE_HOST_DEVICE int column_of(int thread, int j) {
  return thread % 16 * 4 + j / 4 * (kTile / 2) + j % 4;
}

// Adds the products of one stage.
DISTFORGE_HOST_DEVICE void multiply(const float* a, const float* b, int thread, Sums& sums) {
#pragma unroll 4
  for (int k = 0; k < kDepth; ++k) {
    float x[kSide], y[kSide];
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      x[i] = a[shared_offset(k, row_of(thread, i))];
      y[i] = b[shared_offset(k, column_of(thread, i))];
    }
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kSide; ++j) sums.value[i][j] += x[i] * y[j];
    }
  }
}

DISTFORGE_HOST_DEVICE void store_sums(const TileTarget<float>& target, Block block, int thread,
                                      const Sums& sums) {
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      target.store(block.row * kTile + row_of(thread, i),
                   block.column * kTile + column_of(thread, j), sums.value[i][j]);
    }
  }
}

}  // namespace distforge::newton_schulz::float_tile
