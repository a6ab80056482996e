#pragma once

#include "newton_schulz/symmetric_gemm.cuh"

// The results of a tile by way of shared memory, so that global memory is read and written 16 bytes
// at a time along its rows, for the transposes too. In pieces between barriers that the host runs
// as well, as in symmetric_gemm.cuh.

namespace distforge::newton_schulz::staged {

// Sums of neighbouring rows begin 8 banks apart: what half a warp stores at once, pairs of four
// rows by four, falls into different banks.
constexpr int kPitch = kTile + 8;
constexpr int kBytes = kTile * kPitch * 4;
constexpr int kVector = 8;
constexpr int kRun = 2 * kVector;  // of a column: 32 bytes, what the memory transfers at least

template <typename T>
struct alignas(16) Vector {
  T value[kVector];
};

template <typename T>
DISTFORGE_HOST_DEVICE void add(float (&values)[kVector], const T* from, float scale) {
  const Vector<T> addend = *reinterpret_cast<const Vector<T>*>(from);
#pragma unroll
  for (int i = 0; i < kVector; ++i) values[i] += scale * static_cast<float>(addend.value[i]);
}

template <typename T>
DISTFORGE_HOST_DEVICE void store(T* to, const float (&values)[kVector]) {
  Vector<T> vector;
#pragma unroll
  for (int i = 0; i < kVector; ++i) vector.value[i] = T(values[i]);
  *reinterpret_cast<Vector<T>*>(to) = vector;
}

// To the caller's matrix, whose rows are aligned only where their length allows, from `position` of
// a row of `length` elements on.
template <typename T>
DISTFORGE_HOST_DEVICE void store_unpadded(T* row, int64_t position, int64_t length,
                                          const float (&values)[kVector]) {
  if (length % kVector == 0) {
    if (position < length) store(row + position, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (position + i < length) row[position + i] = T(values[i]);
  }
}

// First piece: what stands in `sums` (kTile rows, kPitch apart) becomes C there, zeros outside of
// the matrix, and is stored where rows are wanted.
template <typename T>
DISTFORGE_HOST_DEVICE void store_rows(const TileTarget<T>& target, Block block, int thread,
                                      float* sums) {
  constexpr int kPerRow = kTile / kVector;
  const Task& task = target.task;
  for (int i = thread; i < kTile * kPerRow; i += kThreads) {
    const int r = i / kPerRow, c = i % kPerRow * kVector;
    const int64_t row = block.row * kTile + r, column = block.column * kTile + c;
    auto& at = *reinterpret_cast<Vector<float>*>(sums + r * kPitch + c);
    float values[kVector] = {};
    if (row < task.m && column < task.n) {
#pragma unroll
      for (int q = 0; q < kVector; ++q) values[q] = task.product_scale * at.value[q];
      if (target.d1) add(values, target.d1 + row * target.ldd1 + column, task.d1_scale);
      if (target.d2) add(values, target.d2 + row * target.ldd2 + column, task.d2_scale);
#pragma unroll
      for (int q = 0; q < kVector; ++q) {
        if (row == column + q) values[q] += task.identity;
        // Not by a product: a row with a NaN has one here as well.
        if (column + q >= task.n) values[q] = 0.0f;
      }
    }
#pragma unroll
    for (int q = 0; q < kVector; ++q) at.value[q] = values[q];
    if (row >= task.m) continue;
    if (target.c && column < target.ldc) store(target.c + row * target.ldc + column, values);
    if (target.out && task.out == 1) {
      store_unpadded(target.out + row * target.ldout, column, task.n, values);
    }
  }
}

// Second piece: the transposes. Neighbouring threads take neighbouring columns.
template <typename T>
DISTFORGE_HOST_DEVICE void store_columns(const TileTarget<T>& target, Block block, int thread,
                                         const float* sums) {
  const Task& task = target.task;
  const bool turned = target.out && task.out == 2;
  if (!target.mirrored && !target.ct && !turned) return;
  for (int i = thread; i < kTile * kTile / kRun; i += kThreads) {
    const int c = i % kTile;
    const int64_t column = block.column * kTile + c;
    if (column >= task.n) continue;
    for (int r = i / kTile * kRun; r < (i / kTile + 1) * kRun; r += kVector) {
      const int64_t row = block.row * kTile + r;
      float values[kVector];
#pragma unroll
      for (int q = 0; q < kVector; ++q) values[q] = sums[(r + q) * kPitch + c];
      if (target.mirrored && row < target.ldc) {
        store(target.mirrored + column * target.ldc + row, values);
      }
      if (target.ct && row < target.ldct) store(target.ct + column * target.ldct + row, values);
      if (turned) store_unpadded(target.out + column * target.ldout, row, task.m, values);
    }
  }
}

}  // namespace distforge::newton_schulz::staged
