#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/tensor_list.h"
#include "orthogonal_update/arguments.h"
#include "orthogonal_update/kernels_cpu.h"

namespace distforge::orthogonal_update {
namespace {

// 64 KiB of weights: below this a second thread costs more than it brings.
constexpr int64_t kGrainSize = 16384;

void orthogonal_update_cpu(Tensors weights, Tensors updates, double lr, double weight_decay,
                           double scale) {
  const Coefficients coefficients = make_coefficients(lr, weight_decay, scale);
  with_type_of<float, bfloat16>(updates, "updates", [&]<typename Update>(Update) {
    const auto all = check_and_unpack<Update>(weights, updates);
    const ElementRange range(all);
    const auto kernel = select_kernel<Update>();
    torch::stable::parallel_for(0, range.numel(), kGrainSize, [&](int64_t begin, int64_t end) {
      range.for_each(begin, end, [&](size_t index, int64_t first, int64_t last) {
        kernel(coefficients, all[index], first, last);
      });
    });
  });
}

}  // namespace
}  // namespace distforge::orthogonal_update

STABLE_TORCH_LIBRARY_IMPL(distforge, CPU, m) {
  m.impl("orthogonal_update_", TORCH_BOX(&distforge::orthogonal_update::orthogonal_update_cpu));
}
