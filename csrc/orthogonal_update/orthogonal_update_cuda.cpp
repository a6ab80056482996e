#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cuda_stream.h"
#include "orthogonal_update/arguments.h"
#include "orthogonal_update/launch.h"

namespace distforge::orthogonal_update {
namespace {

void orthogonal_update_cuda(Tensors weights, Tensors updates, double lr, double weight_decay,
                            double scale) {
  with_type_of<float, float16, bfloat16>(updates, "updates", [&]<typename Update>(Update) {
    const auto all = check_and_unpack<Update>(weights, updates);
    const int32_t device = weights[0].get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const char* error = launch_cuda(make_coefficients(lr, weight_decay, scale), all.data(),
                                    all.size(), current_cuda_stream(device));
    STD_TORCH_CHECK(error == nullptr, "orthogonal_update_ did not launch: ", error);
  });
}

}  // namespace
}  // namespace distforge::orthogonal_update

STABLE_TORCH_LIBRARY_IMPL(distforge, CUDA, m) {
  m.impl("orthogonal_update_", TORCH_BOX(&distforge::orthogonal_update::orthogonal_update_cuda));
}
