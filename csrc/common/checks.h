#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

namespace distforge {

// The Python side refuses bad arguments with a sentence; these checks keep a direct call of
// torch.ops.distforge.* from reading outside a buffer.
inline void check_float32_contiguous(const torch::stable::Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, name,
                  " must be float32");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

inline void check_same_shape(const torch::stable::Tensor& tensor,
                             const torch::stable::Tensor& reference, const char* name,
                             const char* reference_name) {
  const auto sizes = tensor.sizes();
  const auto expected = reference.sizes();
  STD_TORCH_CHECK(
      sizes.size() == expected.size() && std::equal(sizes.begin(), sizes.end(), expected.begin()),
      name, " must have the shape of ", reference_name);
}

inline void check_same_device(const torch::stable::Tensor& tensor,
                              const torch::stable::Tensor& reference, const char* name,
                              const char* reference_name) {
  STD_TORCH_CHECK(tensor.is_cpu() == reference.is_cpu() &&
                      tensor.get_device_index() == reference.get_device_index(),
                  name, " must be on the device of ", reference_name);
}

}  // namespace distforge
