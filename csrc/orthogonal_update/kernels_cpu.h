#pragma once

#include "common/bfloat16.h"
#include "common/compiled.h"
#include "orthogonal_update/orthogonal_update.h"

// Apart from torch, so that a test runs them under the sanitizers.

namespace distforge::orthogonal_update {

template <typename Update>
struct Body {
  static inline __attribute__((always_inline)) void run(const Coefficients& coefficients,
                                                        const Buffers<Update>& buffers,
                                                        int64_t begin, int64_t end) {
    const Coefficients c = coefficients;
    float* __restrict__ weight = buffers.weight;
    const Update* __restrict__ update = buffers.update;
    for (int64_t i = begin; i < end; ++i) {
      weight[i] = step(c, weight[i], static_cast<float>(update[i]));
    }
  }
};

template <typename Update>
auto select_kernel() {
  return Compiled<Body<Update>, const Coefficients&, const Buffers<Update>&, int64_t,
                  int64_t>::chosen();
}

}  // namespace distforge::orthogonal_update
