#pragma once

#include "common/checks.h"
#include "grokfast/grokfast.h"

namespace distforge::grokfast {

// An empty list of `emas` means that there is no filter. Updates, of one type, only have to have as
// many elements as their gradients: they may be slices of a stack of matrices.
template <typename Update>
std::vector<Buffers<Update>> check_and_unpack(const Tensors& grads, const Tensors& emas,
                                              const Tensors& momenta, const Tensors& updates,
                                              double lamb) {
  STD_TORCH_CHECK(!emas.empty() || lamb == 0.0, "emas may be left out only when lamb is 0");
  ListChecks checks(grads);
  checks.add<float>(grads, "grads");
  checks.add<float>(momenta, "momenta");
  if (!emas.empty()) checks.add<float>(emas, "emas");
  checks.add<Update>(updates, "updates", true);
  checks.check_disjoint();
  std::vector<Buffers<Update>> all;
  all.reserve(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    all.push_back({grads[i].const_data_ptr<float>(),
                   emas.empty() ? nullptr : emas[i].mutable_data_ptr<float>(),
                   momenta[i].mutable_data_ptr<float>(),
                   static_cast<Update*>(updates[i].mutable_data_ptr()), grads[i].numel()});
  }
  return all;
}

}  // namespace distforge::grokfast
