#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace distforge {

// All arguments are checked before anything is written. The Python side has the sentences: it looks
// for what is wrong where these checks have refused.
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

// The addresses of buffers, of which no two may overlap: a step would read what it has just
// overwritten.
class Spans {
 public:
  void add(const torch::stable::Tensor& tensor, int64_t element_size) {
    if (tensor.numel() == 0) return;
    const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
    spans_.emplace_back(begin, begin + tensor.numel() * element_size);
  }

  void check_disjoint() {
    std::sort(spans_.begin(), spans_.end());
    for (size_t i = 1; i < spans_.size(); ++i) {
      STD_TORCH_CHECK(spans_[i - 1].second <= spans_[i].first, "two tensors share memory");
    }
  }

 private:
  std::vector<std::pair<uintptr_t, uintptr_t>> spans_;
};

}  // namespace distforge
