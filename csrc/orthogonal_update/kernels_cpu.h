#pragma once

#include "common/bfloat16.h"
#include "common/cpu_capability.h"
#include "orthogonal_update/orthogonal_update.h"

// Apart from torch, so that a test runs them under the sanitizers.

namespace distforge::orthogonal_update {

template <typename Update, bool kHasCopy>
inline __attribute__((always_inline)) void run_body(const Coefficients& coefficients,
                                                    const Buffers<Update, bfloat16>& buffers,
                                                    int64_t begin, int64_t end) {
  const Coefficients c = coefficients;
  float* __restrict__ weight = buffers.weight;
  const Update* __restrict__ update = buffers.update;
  bfloat16* __restrict__ copy = buffers.copy;
  for (int64_t i = begin; i < end; ++i) {
    weight[i] = step(c, weight[i], static_cast<float>(update[i]));
    if constexpr (kHasCopy) copy[i] = bfloat16(weight[i]);
  }
}

template <typename Update, bool kHasCopy>
void run_default(const Coefficients& c, const Buffers<Update, bfloat16>& b, int64_t begin,
                 int64_t end) {
  run_body<Update, kHasCopy>(c, b, begin, end);
}

#ifdef DISTFORGE_X86
template <typename Update, bool kHasCopy>
DISTFORGE_TARGET_AVX2 void run_avx2(const Coefficients& c, const Buffers<Update, bfloat16>& b,
                                    int64_t begin, int64_t end) {
  run_body<Update, kHasCopy>(c, b, begin, end);
}

template <typename Update, bool kHasCopy>
DISTFORGE_TARGET_AVX512 void run_avx512(const Coefficients& c, const Buffers<Update, bfloat16>& b,
                                        int64_t begin, int64_t end) {
  run_body<Update, kHasCopy>(c, b, begin, end);
}
#endif

template <typename Update, bool kHasCopy>
auto select_kernel() {
#ifdef DISTFORGE_X86
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return &run_avx512<Update, kHasCopy>;
    case CpuCapability::kAvx2:
      return &run_avx2<Update, kHasCopy>;
    case CpuCapability::kDefault:
      break;
  }
#endif
  return &run_default<Update, kHasCopy>;
}

}  // namespace distforge::orthogonal_update
