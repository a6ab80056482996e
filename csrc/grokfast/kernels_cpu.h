#pragma once

#include "common/bfloat16.h"
#include "common/compiled.h"
#include "grokfast/grokfast.h"

// Apart from torch, so that a test runs them under the sanitizers.

namespace distforge::grokfast {

template <typename Update, bool kHasEma, bool kNesterov>
struct Body {
  static inline __attribute__((always_inline)) void run(const Coefficients& coefficients,
                                                        const Buffers<Update>& buffers,
                                                        int64_t begin, int64_t end) {
    const Coefficients c = coefficients;
    const float* __restrict__ grad = buffers.grad;
    float* __restrict__ ema = buffers.ema;
    float* __restrict__ momentum = buffers.momentum;
    Update* __restrict__ update = buffers.update;
    for (int64_t i = begin; i < end; ++i) {
      float h = kHasEma ? ema[i] : 0.0f;
      float m = momentum[i];
      update[i] = Update(step<kHasEma, kNesterov>(c, grad[i], h, m));
      momentum[i] = m;
      if constexpr (kHasEma) ema[i] = h;
    }
  }
};

template <typename Update, bool kHasEma, bool kNesterov>
auto select_kernel() {
  return Compiled<Body<Update, kHasEma, kNesterov>, const Coefficients&, const Buffers<Update>&,
                  int64_t, int64_t>::chosen();
}

}  // namespace distforge::grokfast
