#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/tensor_list.h"
#include "grokfast/arguments.h"
#include "grokfast/kernels_cpu.h"

namespace distforge::grokfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// 64 KiB of each buffer: below this a second thread costs more than it brings.
constexpr int64_t kGrainSize = 16384;

template <typename Update>
void run(const Coefficients& coefficients, const std::vector<Buffers<Update>>& all, bool has_ema,
         bool nesterov) {
  const ElementRange range(all);
  dispatch(has_ema, nesterov, [&](auto filtered, auto is_nesterov) {
    const auto kernel = select_kernel<Update, filtered.value, is_nesterov.value>();
    torch::stable::parallel_for(0, range.numel(), kGrainSize, [&](int64_t begin, int64_t end) {
      range.for_each(begin, end, [&](size_t index, int64_t first, int64_t last) {
        kernel(coefficients, all[index], first, last);
      });
    });
  });
}

Tensor grokfast_momentum_cpu(const Tensor& grad, std::optional<Tensor> ema, const Tensor& momentum,
                             double alpha, double lamb, double beta, bool nesterov) {
  Tensor update = torch::stable::empty_like(grad);
  const auto buffers = check_and_unpack<float>(grad, ema, momentum, update, lamb);
  run<float>(make_coefficients(alpha, lamb, beta), {buffers}, buffers.ema != nullptr, nesterov);
  return update;
}

void grokfast_momentum_into_cpu(std::vector<Tensor> grads, std::vector<Tensor> emas,
                                std::vector<Tensor> momenta, std::vector<Tensor> updates,
                                double alpha, double lamb, double beta, bool nesterov) {
  if (grads.empty()) return;
  const Coefficients coefficients = make_coefficients(alpha, lamb, beta);
  const bool half = !updates.empty() && updates[0].scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(updates.empty() || half || updates[0].scalar_type() == ScalarType::Float,
                  "updates must be float32 or bfloat16");
  if (half) {
    run(coefficients, check_and_unpack<bfloat16>(grads, emas, momenta, updates, lamb),
        !emas.empty(), nesterov);
  } else {
    run(coefficients, check_and_unpack<float>(grads, emas, momenta, updates, lamb), !emas.empty(),
        nesterov);
  }
}

}  // namespace
}  // namespace distforge::grokfast

STABLE_TORCH_LIBRARY_IMPL(distforge, CPU, m) {
  m.impl("grokfast_momentum_", TORCH_BOX(&distforge::grokfast::grokfast_momentum_cpu));
  m.impl("grokfast_momentum_into_", TORCH_BOX(&distforge::grokfast::grokfast_momentum_into_cpu));
}
