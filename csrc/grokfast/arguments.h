#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/checks.h"
#include "grokfast/grokfast.h"

namespace distforge::grokfast {

inline Buffers check_and_unpack(const torch::stable::Tensor& grad,
                                const std::optional<torch::stable::Tensor>& ema,
                                const torch::stable::Tensor& momentum,
                                torch::stable::Tensor& update, double lamb) {
  check_float32_contiguous(grad, "grad");
  check_like(momentum, grad, "momentum");
  const bool has_ema = ema.has_value() && (ema->numel() > 0 || grad.numel() == 0);
  STD_TORCH_CHECK(has_ema || lamb == 0.0, "ema may be left out only when lamb is 0");
  if (has_ema) check_like(*ema, grad, "ema");
  return {grad.const_data_ptr<float>(), has_ema ? ema->mutable_data_ptr<float>() : nullptr,
          momentum.mutable_data_ptr<float>(), update.mutable_data_ptr<float>(), grad.numel()};
}

}  // namespace distforge::grokfast
