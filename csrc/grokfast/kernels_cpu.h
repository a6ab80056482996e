#pragma once

#include "common/bfloat16.h"
#include "common/cpu_capability.h"
#include "grokfast/grokfast.h"

// Apart from torch, so that a test runs them under the sanitizers.

namespace distforge::grokfast {

template <typename Update>
using Kernel = void (*)(const Coefficients&, const Buffers<Update>&, int64_t begin, int64_t end);

template <typename Update, bool kHasEma, bool kNesterov>
inline __attribute__((always_inline)) void run_body(const Coefficients& coefficients,
                                                    const Buffers<Update>& buffers, int64_t begin,
                                                    int64_t end) {
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

template <typename Update, bool kHasEma, bool kNesterov>
void run_default(const Coefficients& c, const Buffers<Update>& b, int64_t begin, int64_t end) {
  run_body<Update, kHasEma, kNesterov>(c, b, begin, end);
}

#ifdef DISTFORGE_X86
template <typename Update, bool kHasEma, bool kNesterov>
DISTFORGE_TARGET_AVX2 void run_avx2(const Coefficients& c, const Buffers<Update>& b, int64_t begin,
                                    int64_t end) {
  run_body<Update, kHasEma, kNesterov>(c, b, begin, end);
}

template <typename Update, bool kHasEma, bool kNesterov>
DISTFORGE_TARGET_AVX512 void run_avx512(const Coefficients& c, const Buffers<Update>& b,
                                        int64_t begin, int64_t end) {
  run_body<Update, kHasEma, kNesterov>(c, b, begin, end);
}
#endif

template <typename Update, bool kHasEma, bool kNesterov>
Kernel<Update> select_kernel() {
#ifdef DISTFORGE_X86
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return &run_avx512<Update, kHasEma, kNesterov>;
    case CpuCapability::kAvx2:
      return &run_avx2<Update, kHasEma, kNesterov>;
    case CpuCapability::kDefault:
      break;
  }
#endif
  return &run_default<Update, kHasEma, kNesterov>;
}

}  // namespace distforge::grokfast
