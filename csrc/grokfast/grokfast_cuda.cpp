#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cuda_stream.h"
#include "grokfast/arguments.h"

namespace distforge::grokfast {
namespace {

using torch::stable::Tensor;

Tensor grokfast_momentum_cuda(const Tensor& grad, std::optional<Tensor> ema, const Tensor& momentum,
                              double alpha, double lamb, double beta, bool nesterov) {
  Tensor update = torch::stable::empty_like(grad);
  const Buffers buffers = check_and_unpack(grad, ema, momentum, update, lamb);
  if (buffers.numel == 0) return update;
  const int32_t device = grad.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const char* error = launch_cuda(make_coefficients(alpha, lamb, beta), buffers, nesterov,
                                  current_cuda_stream(device));
  STD_TORCH_CHECK(error == nullptr, "grokfast_momentum_ did not launch: ", error);
  return update;
}

}  // namespace
}  // namespace distforge::grokfast

STABLE_TORCH_LIBRARY_IMPL(distforge, CUDA, m) {
  m.impl("grokfast_momentum_", TORCH_BOX(&distforge::grokfast::grokfast_momentum_cuda));
}
