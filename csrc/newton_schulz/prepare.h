#pragma once

#include "newton_schulz/product.h"
#include "newton_schulz/program.h"

// Norm and scaling of the input, in pieces for one thread, as symmetric_gemm.cuh.

namespace distforge::newton_schulz {

constexpr int kNormThreads = 256;
// Parts in which the squares of one matrix are summed, each by a block: a fixed number, so that the
// order of the sum does not depend on the GPU.
constexpr int kNormParts = 32;

// One thread's share of a part, in double, where no square of a float overflows or vanishes.
template <typename T>
DISTFORGE_HOST_DEVICE double squares_of_thread(const T* x, int64_t count, int part, int thread) {
  double sum = 0.0;
  const int64_t step = static_cast<int64_t>(kNormParts) * kNormThreads;
  for (int64_t i = static_cast<int64_t>(part) * kNormThreads + thread; i < count; i += step) {
    const double value = static_cast<float>(x[i]);
    sum += value * value;
  }
  return sum;
}

// 1 / norm from the sums of the parts: 0 for a matrix of zeros, NaN where an element is not finite.
DISTFORGE_HOST_DEVICE double inverse_norm(const double* parts) {
  double sum = 0.0;
  for (int i = 0; i < kNormParts; ++i) sum += parts[i];
  if (sum == 0.0) return 0.0;
  if (!(sum < 1e300)) return __builtin_nan("");
  return 1.0 / sqrt(sum);
}

// A float holds the factor unless the norm is far from 1.
template <typename T>
DISTFORGE_HOST_DEVICE float scaled(T x, double factor) {
  const float value = static_cast<float>(x);
  if (factor == 0.0 || (factor > 1e-37 && factor < 1e37)) return value * static_cast<float>(factor);
  return static_cast<float>(value * factor);
}

constexpr int kScaleTile = 32;
constexpr int kScaleThreads = 256;

// A thread's i-th element (i < 4) of a 32 x 32 tile: neighbours in a warp are neighbours in a row.
DISTFORGE_HOST_DEVICE int scale_row(int thread, int i) { return thread / kScaleTile + i * 8; }
DISTFORGE_HOST_DEVICE int scale_column(int thread) { return thread % kScaleTile; }

}  // namespace distforge::newton_schulz
