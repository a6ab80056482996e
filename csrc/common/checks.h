#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/bfloat16.h"
#include "common/float16.h"

namespace distforge {

using torch::headeronly::ScalarType;
using Tensors = std::vector<torch::stable::Tensor>;

template <typename T>
constexpr ScalarType kScalarType = ScalarType::Undefined;
template <>
inline constexpr ScalarType kScalarType<float> = ScalarType::Float;
template <>
inline constexpr ScalarType kScalarType<bfloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType kScalarType<float16> = ScalarType::Half;

// Calls run(T{}) with that of Ts which the list, not empty, begins with.
template <typename... Ts, typename Run>
void with_type_of(const Tensors& list, const char* name, const Run& run) {
  STD_TORCH_CHECK(!list.empty(), name, " is empty");
  const auto type = list[0].scalar_type();
  const bool known = ((type == kScalarType<Ts> && (run(Ts{}), true)) || ...);
  STD_TORCH_CHECK(known, name, " has a dtype that no kernel takes on this device");
}

// What a kernel relies on in the lists of an operator, all of it before anything is written. What
// users are refused is stated in distforge/ops/checks.py, which finds the sentence for what fails
// here.
class ListChecks {
 public:
  // The list that the others go along with.
  explicit ListChecks(const Tensors& first) : first_(first) {}

  // `any_shape`: with as many elements as its partner, otherwise of its shape.
  template <typename T>
  void add(const Tensors& list, const char* name, bool any_shape = false) {
    STD_TORCH_CHECK(list.size() == first_.size(), name, " has the wrong length");
    for (size_t i = 0; i < list.size(); ++i) {
      const auto &tensor = list[i], &partner = first_[i];
      STD_TORCH_CHECK(tensor.scalar_type() == kScalarType<T> && tensor.is_contiguous() &&
                          tensor.numel() == partner.numel() && on_one_device(tensor) &&
                          (any_shape || same_shape(tensor, partner)),
                      name, "[", i, "] does not fit");
      if (tensor.numel() == 0) continue;
      const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
      spans_.emplace_back(begin, begin + tensor.numel() * sizeof(T));
    }
  }

  // A step would read what it has just overwritten.
  void check_disjoint() {
    std::sort(spans_.begin(), spans_.end());
    for (size_t i = 1; i < spans_.size(); ++i) {
      STD_TORCH_CHECK(spans_[i - 1].second <= spans_[i].first, "two tensors share memory");
    }
  }

 private:
  bool on_one_device(const torch::stable::Tensor& tensor) const {
    return tensor.is_cpu() == first_[0].is_cpu() &&
           tensor.get_device_index() == first_[0].get_device_index();
  }

  static bool same_shape(const torch::stable::Tensor& x, const torch::stable::Tensor& y) {
    const auto sizes = x.sizes(), expected = y.sizes();
    return std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end());
  }

  const Tensors& first_;
  std::vector<std::pair<uintptr_t, uintptr_t>> spans_;
};

}  // namespace distforge
