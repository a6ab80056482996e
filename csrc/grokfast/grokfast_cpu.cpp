#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/tensor_list.h"
#include "grokfast/arguments.h"
#include "grokfast/kernels_cpu.h"

namespace distforge::grokfast {
namespace {

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

void grokfast_momentum_into_cpu(Tensors grads, Tensors emas, Tensors momenta, Tensors updates,
                                double alpha, double lamb, double beta, bool nesterov) {
  with_type_of<float, bfloat16>(updates, "updates", [&]<typename Update>(Update) {
    run(make_coefficients(alpha, lamb, beta),
        check_and_unpack<Update>(grads, emas, momenta, updates, lamb), !emas.empty(), nesterov);
  });
}

}  // namespace
}  // namespace distforge::grokfast

STABLE_TORCH_LIBRARY_IMPL(distforge, CPU, m) {
  m.impl("grokfast_momentum_into_", TORCH_BOX(&distforge::grokfast::grokfast_momentum_into_cpu));
}
