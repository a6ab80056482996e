#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/checks.h"
#include "orthogonal_update/orthogonal_update.h"

namespace distforge::orthogonal_update {

inline void check_list(const std::vector<torch::stable::Tensor>& list,
                       const std::vector<torch::stable::Tensor>& weights, const char* name) {
  STD_TORCH_CHECK(list.size() == weights.size(), name, " must be as many as weights");
  for (size_t i = 0; i < list.size(); ++i) {
    STD_TORCH_CHECK(list[i].scalar_type() == list[0].scalar_type(), name, " must be of one dtype");
    STD_TORCH_CHECK(list[i].is_contiguous(), name, " must be contiguous");
    STD_TORCH_CHECK(list[i].numel() == weights[i].numel(), name,
                    " must have as many elements as weights");
    check_same_device(list[i], weights[0], name, "weights");
  }
}

// `copies` is empty where there are none.
template <typename Update, typename Copy>
std::vector<Buffers<Update, Copy>> check_and_unpack(
    const std::vector<torch::stable::Tensor>& weights,
    const std::vector<torch::stable::Tensor>& updates,
    const std::vector<torch::stable::Tensor>& copies) {
  check_list(updates, weights, "updates");
  if (!copies.empty()) check_list(copies, weights, "copies");
  std::vector<Buffers<Update, Copy>> all;
  all.reserve(weights.size());
  Spans spans;
  for (size_t i = 0; i < weights.size(); ++i) {
    check_float32_contiguous(weights[i], "weights");
    check_same_device(weights[i], weights[0], "weights", "the first of them");
    auto* copy = copies.empty() ? nullptr : copies[i].mutable_data_ptr();
    all.push_back({weights[i].mutable_data_ptr<float>(),
                   static_cast<const Update*>(updates[i].const_data_ptr()),
                   static_cast<Copy*>(copy), weights[i].numel()});
    spans.add(weights[i], sizeof(float));
    spans.add(updates[i], sizeof(Update));
    if (copy != nullptr) spans.add(copies[i], sizeof(Copy));
  }
  spans.check_disjoint();
  return all;
}

}  // namespace distforge::orthogonal_update
