#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "common/checks.h"
#include "grokfast/grokfast.h"

namespace distforge::grokfast {

template <typename Update>
Buffers<Update> check_and_unpack(const torch::stable::Tensor& grad,
                                 const std::optional<torch::stable::Tensor>& ema,
                                 const torch::stable::Tensor& momentum,
                                 const torch::stable::Tensor& update, double lamb) {
  check_float32_contiguous(grad, "grad");
  check_float32_contiguous(momentum, "momentum");
  check_same_shape(momentum, grad, "momentum", "grad");
  check_same_device(momentum, grad, "momentum", "grad");
  const bool has_ema = ema.has_value() && (ema->numel() > 0 || grad.numel() == 0);
  STD_TORCH_CHECK(has_ema || lamb == 0.0, "ema may be left out only when lamb is 0");
  if (has_ema) {
    check_float32_contiguous(*ema, "ema");
    check_same_shape(*ema, grad, "ema", "grad");
    check_same_device(*ema, grad, "ema", "grad");
  }
  return {grad.const_data_ptr<float>(), has_ema ? ema->mutable_data_ptr<float>() : nullptr,
          momentum.mutable_data_ptr<float>(), static_cast<Update*>(update.mutable_data_ptr()),
          grad.numel()};
}

// The list form: an empty list of `emas` means that there is no filter. Updates, of one type, only
// have to have as many elements as their gradients: they may be slices of a stack of matrices.
template <typename Update>
std::vector<Buffers<Update>> check_and_unpack(const std::vector<torch::stable::Tensor>& grads,
                                              const std::vector<torch::stable::Tensor>& emas,
                                              const std::vector<torch::stable::Tensor>& momenta,
                                              const std::vector<torch::stable::Tensor>& updates,
                                              double lamb) {
  STD_TORCH_CHECK(momenta.size() == grads.size() && updates.size() == grads.size() &&
                      (emas.empty() || emas.size() == grads.size()),
                  "emas, momenta and updates must be as many as grads");
  std::vector<Buffers<Update>> all;
  all.reserve(grads.size());
  Spans spans;
  for (size_t i = 0; i < grads.size(); ++i) {
    STD_TORCH_CHECK(updates[i].scalar_type() == updates[0].scalar_type(),
                    "updates must be of one dtype");
    STD_TORCH_CHECK(updates[i].is_contiguous(), "updates must be contiguous");
    STD_TORCH_CHECK(updates[i].numel() == grads[i].numel(),
                    "updates must have as many elements as grads");
    check_same_device(updates[i], grads[0], "updates", "grads");
    check_same_device(grads[i], grads[0], "grads", "the first of them");
    STD_TORCH_CHECK(emas.empty() || emas[i].numel() == grads[i].numel(),
                    "emas must have as many elements as grads");
    const auto ema = emas.empty() ? std::nullopt : std::optional(emas[i]);
    all.push_back(check_and_unpack<Update>(grads[i], ema, momenta[i], updates[i], lamb));
    spans.add(grads[i], sizeof(float));
    spans.add(momenta[i], sizeof(float));
    spans.add(updates[i], sizeof(Update));
    if (ema) spans.add(*ema, sizeof(float));
  }
  spans.check_disjoint();
  return all;
}

}  // namespace distforge::grokfast
