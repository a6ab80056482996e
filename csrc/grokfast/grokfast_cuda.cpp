#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cuda_stream.h"
#include "grokfast/arguments.h"
#include "grokfast/launch.h"

namespace distforge::grokfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Update>
void run(const Coefficients& coefficients, const std::vector<Buffers<Update>>& all, bool has_ema,
         bool nesterov, int32_t device) {
  const torch::stable::accelerator::DeviceGuard guard(device);
  const char* error = launch_cuda(coefficients, all.data(), all.size(), has_ema, nesterov,
                                  current_cuda_stream(device));
  STD_TORCH_CHECK(error == nullptr, "grokfast_momentum did not launch: ", error);
}

Tensor grokfast_momentum_cuda(const Tensor& grad, std::optional<Tensor> ema, const Tensor& momentum,
                              double alpha, double lamb, double beta, bool nesterov) {
  Tensor update = torch::stable::empty_like(grad);
  const auto buffers = check_and_unpack<float>(grad, ema, momentum, update, lamb);
  run<float>(make_coefficients(alpha, lamb, beta), {buffers}, buffers.ema != nullptr, nesterov,
             grad.get_device_index());
  return update;
}

void grokfast_momentum_into_cuda(std::vector<Tensor> grads, std::vector<Tensor> emas,
                                 std::vector<Tensor> momenta, std::vector<Tensor> updates,
                                 double alpha, double lamb, double beta, bool nesterov) {
  if (grads.empty()) return;
  const Coefficients coefficients = make_coefficients(alpha, lamb, beta);
  const auto with = [&]<typename Update>(Update) {
    run(coefficients, check_and_unpack<Update>(grads, emas, momenta, updates, lamb), !emas.empty(),
        nesterov, grads[0].get_device_index());
  };
  switch (updates.empty() ? ScalarType::Float : updates[0].scalar_type()) {
    case ScalarType::Float:
      return with(float{});
    case ScalarType::Half:
      return with(float16{});
    case ScalarType::BFloat16:
      return with(bfloat16{});
    default:
      STD_TORCH_CHECK(false, "updates must be float32, float16 or bfloat16");
  }
}

}  // namespace
}  // namespace distforge::grokfast

STABLE_TORCH_LIBRARY_IMPL(distforge, CUDA, m) {
  m.impl("grokfast_momentum_", TORCH_BOX(&distforge::grokfast::grokfast_momentum_cuda));
  m.impl("grokfast_momentum_into_", TORCH_BOX(&distforge::grokfast::grokfast_momentum_into_cuda));
}
