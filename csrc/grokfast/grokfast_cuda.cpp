#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cuda_stream.h"
#include "grokfast/arguments.h"
#include "grokfast/launch.h"

namespace distforge::grokfast {
namespace {

void grokfast_momentum_into_cuda(Tensors grads, Tensors emas, Tensors momenta, Tensors updates,
                                 double alpha, double lamb, double beta, bool nesterov) {
  with_type_of<float, float16, bfloat16>(updates, "updates", [&]<typename Update>(Update) {
    const auto all = check_and_unpack<Update>(grads, emas, momenta, updates, lamb);
    const int32_t device = grads[0].get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const char* error = launch_cuda(make_coefficients(alpha, lamb, beta), all.data(), all.size(),
                                    !emas.empty(), nesterov, current_cuda_stream(device));
    STD_TORCH_CHECK(error == nullptr, "grokfast_momentum_into_ did not launch: ", error);
  });
}

}  // namespace
}  // namespace distforge::grokfast

STABLE_TORCH_LIBRARY_IMPL(distforge, CUDA, m) {
  m.impl("grokfast_momentum_into_", TORCH_BOX(&distforge::grokfast::grokfast_momentum_into_cuda));
}
