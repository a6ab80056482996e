#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cpu_capability.h"
#include "grokfast/arguments.h"

namespace distforge::grokfast {
namespace {

using torch::stable::Tensor;

// 64 KiB of each buffer: below this a second thread costs more than it brings.
constexpr int64_t kGrainSize = 16384;

template <bool kHasEma, bool kNesterov>
inline __attribute__((always_inline)) void run_body(const Coefficients& coefficients,
                                                    const Buffers& buffers, int64_t begin,
                                                    int64_t end) {
  const Coefficients c = coefficients;
  const float* __restrict__ grad = buffers.grad;
  float* __restrict__ ema = buffers.ema;
  float* __restrict__ momentum = buffers.momentum;
  float* __restrict__ update = buffers.update;
  for (int64_t i = begin; i < end; ++i) {
    float h = kHasEma ? ema[i] : 0.0f;
    float m = momentum[i];
    update[i] = step<kHasEma, kNesterov>(c, grad[i], h, m);
    momentum[i] = m;
    if constexpr (kHasEma) ema[i] = h;
  }
}

template <bool kHasEma, bool kNesterov>
void run_default(const Coefficients& c, const Buffers& b, int64_t begin, int64_t end) {
  run_body<kHasEma, kNesterov>(c, b, begin, end);
}

#ifdef DISTFORGE_X86
template <bool kHasEma, bool kNesterov>
DISTFORGE_TARGET_AVX2 void run_avx2(const Coefficients& c, const Buffers& b, int64_t begin,
                                    int64_t end) {
  run_body<kHasEma, kNesterov>(c, b, begin, end);
}

template <bool kHasEma, bool kNesterov>
DISTFORGE_TARGET_AVX512 void run_avx512(const Coefficients& c, const Buffers& b, int64_t begin,
                                        int64_t end) {
  run_body<kHasEma, kNesterov>(c, b, begin, end);
}
#endif

template <bool kHasEma, bool kNesterov>
auto select_kernel() {
#ifdef DISTFORGE_X86
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return &run_avx512<kHasEma, kNesterov>;
    case CpuCapability::kAvx2:
      return &run_avx2<kHasEma, kNesterov>;
    case CpuCapability::kDefault:
      break;
  }
#endif
  return &run_default<kHasEma, kNesterov>;
}

Tensor grokfast_momentum_cpu(const Tensor& grad, std::optional<Tensor> ema, const Tensor& momentum,
                             double alpha, double lamb, double beta, bool nesterov) {
  Tensor update = torch::stable::empty_like(grad);
  const Buffers buffers = check_and_unpack(grad, ema, momentum, update, lamb);
  const Coefficients coefficients = make_coefficients(alpha, lamb, beta);
  dispatch(buffers.ema != nullptr, nesterov, [&](auto has_ema, auto is_nesterov) {
    const auto kernel = select_kernel<has_ema.value, is_nesterov.value>();
    torch::stable::parallel_for(0, buffers.numel, kGrainSize, [&](int64_t begin, int64_t end) {
      kernel(coefficients, buffers, begin, end);
    });
  });
  return update;
}

}  // namespace
}  // namespace distforge::grokfast

STABLE_TORCH_LIBRARY_IMPL(distforge, CPU, m) {
  m.impl("grokfast_momentum_", TORCH_BOX(&distforge::grokfast::grokfast_momentum_cpu));
}
