#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/checks.h"
#include "newton_schulz/plan.h"

namespace distforge::newton_schulz {

struct Arguments {
  Schedule schedule;
  Shape shape;
  int64_t count;
};

// `coefficients` holds a, b, c of each step.
inline Schedule schedule_of(const std::vector<double>& coefficients) {
  STD_TORCH_CHECK(!coefficients.empty() && coefficients.size() % 3 == 0,
                  "coefficients must hold three numbers for each step");
  Schedule schedule;
  for (size_t i = 0; i < coefficients.size(); i += 3) {
    schedule.push_back({static_cast<float>(coefficients[i]),
                        static_cast<float>(coefficients[i + 1]),
                        static_cast<float>(coefficients[i + 2])});
  }
  return schedule;
}

// x is (..., rows, columns).
inline Arguments check_and_unpack(const torch::stable::Tensor& x,
                                  const std::vector<double>& coefficients) {
  STD_TORCH_CHECK(x.dim() >= 2, "x must have at least two dimensions");
  STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous");
  Arguments arguments{schedule_of(coefficients), {x.size(x.dim() - 2), x.size(x.dim() - 1)}, 1};
  for (int64_t i = 0; i + 2 < x.dim(); ++i) arguments.count *= x.size(i);
  return arguments;
}

}  // namespace distforge::newton_schulz
