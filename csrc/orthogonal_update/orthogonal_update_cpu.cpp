#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/tensor_list.h"
#include "orthogonal_update/arguments.h"
#include "orthogonal_update/kernels_cpu.h"

namespace distforge::orthogonal_update {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// 64 KiB of weights: below this a second thread costs more than it brings.
constexpr int64_t kGrainSize = 16384;

template <typename Update>
void run(const Coefficients& coefficients, const std::vector<Buffers<Update, bfloat16>>& all,
         bool has_copy) {
  const ElementRange range(all);
  const auto kernel = has_copy ? select_kernel<Update, true>() : select_kernel<Update, false>();
  torch::stable::parallel_for(0, range.numel(), kGrainSize, [&](int64_t begin, int64_t end) {
    range.for_each(begin, end, [&](size_t index, int64_t first, int64_t last) {
      kernel(coefficients, all[index], first, last);
    });
  });
}

void orthogonal_update_cpu(std::vector<Tensor> weights, std::vector<Tensor> updates,
                           std::vector<Tensor> copies, double lr, double weight_decay,
                           double scale) {
  if (weights.empty()) return;
  const Coefficients coefficients = make_coefficients(lr, weight_decay, scale);
  STD_TORCH_CHECK(copies.empty() || copies[0].scalar_type() == ScalarType::BFloat16,
                  "copies must be bfloat16");
  const auto type = updates.empty() ? ScalarType::Float : updates[0].scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16,
                  "updates must be float32 or bfloat16");
  if (type == ScalarType::Float) {
    run(coefficients, check_and_unpack<float, bfloat16>(weights, updates, copies), !copies.empty());
  } else {
    run(coefficients, check_and_unpack<bfloat16, bfloat16>(weights, updates, copies),
        !copies.empty());
  }
}

}  // namespace
}  // namespace distforge::orthogonal_update

STABLE_TORCH_LIBRARY_IMPL(distforge, CPU, m) {
  m.impl("orthogonal_update_", TORCH_BOX(&distforge::orthogonal_update::orthogonal_update_cpu));
}
