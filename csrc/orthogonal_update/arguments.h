#pragma once

#include "common/checks.h"
#include "orthogonal_update/orthogonal_update.h"

namespace distforge::orthogonal_update {

template <typename Update>
std::vector<Buffers<Update>> check_and_unpack(const Tensors& weights, const Tensors& updates) {
  ListChecks checks(weights);
  checks.add<float>(weights, "weights");
  checks.add<Update>(updates, "updates", true);
  checks.check_disjoint();
  std::vector<Buffers<Update>> all;
  all.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    all.push_back({weights[i].mutable_data_ptr<float>(),
                   static_cast<const Update*>(updates[i].const_data_ptr()), weights[i].numel()});
  }
  return all;
}

}  // namespace distforge::orthogonal_update
