#pragma once

#include <cstdint>

#include "common/macros.h"

// No torch in here: nvcc parses this once for each architecture.

namespace distforge::orthogonal_update {

// W <- decay W - rate O. Both are taken in double first: 1 - lr * weight_decay is close to 1.
struct Coefficients {
  float decay;
  float rate;
};

inline Coefficients make_coefficients(double lr, double weight_decay, double scale) {
  return {static_cast<float>(1.0 - lr * weight_decay), static_cast<float>(lr * scale)};
}

DISTFORGE_HOST_DEVICE float step(const Coefficients& c, float weight, float update) {
  return c.decay * weight - c.rate * update;
}

// One tensor, checked.
template <typename Update>
struct Buffers {
  float* weight;
  const Update* update;
  int64_t numel;
};

}  // namespace distforge::orthogonal_update
