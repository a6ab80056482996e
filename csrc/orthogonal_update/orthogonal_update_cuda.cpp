#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cuda_stream.h"
#include "orthogonal_update/arguments.h"
#include "orthogonal_update/launch.h"

namespace distforge::orthogonal_update {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void orthogonal_update_cuda(std::vector<Tensor> weights, std::vector<Tensor> updates,
                            std::vector<Tensor> copies, double lr, double weight_decay,
                            double scale) {
  if (weights.empty()) return;
  const Coefficients coefficients = make_coefficients(lr, weight_decay, scale);
  const int32_t device = weights[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto run = [&]<typename Update, typename Copy>(Update, Copy) {
    const auto all = check_and_unpack<Update, Copy>(weights, updates, copies);
    const char* error = launch_cuda(coefficients, all.data(), all.size(), !copies.empty(),
                                    current_cuda_stream(device));
    STD_TORCH_CHECK(error == nullptr, "orthogonal_update_ did not launch: ", error);
  };
  const auto copy_type = copies.empty() ? ScalarType::BFloat16 : copies[0].scalar_type();
  const auto with = [&]<typename Update>(Update update) {
    if (copy_type == ScalarType::Half) return run(update, float16{});
    STD_TORCH_CHECK(copy_type == ScalarType::BFloat16, "copies must be float16 or bfloat16");
    run(update, bfloat16{});
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
}  // namespace distforge::orthogonal_update

STABLE_TORCH_LIBRARY_IMPL(distforge, CUDA, m) {
  m.impl("orthogonal_update_", TORCH_BOX(&distforge::orthogonal_update::orthogonal_update_cuda));
}
