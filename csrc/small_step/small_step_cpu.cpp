#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "grokfast/arguments.h"
#include "grokfast/kernels_cpu.h"
#include "newton_schulz/arguments.h"
#include "newton_schulz/small_cpu.h"
#include "orthogonal_update/kernels_cpu.h"

namespace distforge::small_step {
namespace {

using newton_schulz::Shape;

// Tensors, one of which takes 1 to 30 us: below this a second thread costs more than it brings.
constexpr int64_t kGrainSize = 32;

struct Scalars {
  grokfast::Coefficients filter;
  double lr, weight_decay;
};

// The update of one tensor, a stack of matrices of one shape.
struct Item {
  grokfast::Buffers<float> buffers;
  float* weight;
  Shape shape;
  double scale;
};

std::vector<Item> check_and_unpack(const Tensors& weights, const Tensors& grads,
                                   const Tensors& emas, const Tensors& momenta,
                                   const std::vector<int64_t>& rows,
                                   const std::vector<int64_t>& columns,
                                   const std::vector<double>& scales, double lamb) {
  const size_t count = weights.size();
  STD_TORCH_CHECK(rows.size() == count && columns.size() == count && scales.size() == count,
                  "rows, columns or scales has the wrong length");
  // Weights take the place of the updates: all four lists are of one kind, and apart.
  const auto all = grokfast::check_and_unpack<float>(grads, emas, momenta, weights, lamb);
  std::vector<Item> items;
  items.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const Shape shape{rows[i], columns[i]};
    STD_TORCH_CHECK(shape.n() > 0 && newton_schulz::is_small(shape) &&
                        all[i].numel % (rows[i] * columns[i]) == 0,
                    "weights[", i, "] is not made of small matrices of that shape");
    items.push_back({all[i], all[i].update, shape, scales[i]});
  }
  return items;
}

template <typename Filter, typename Update>
void run(const std::vector<Item>& items, const newton_schulz::Schedule& schedule,
         const Scalars& scalars, Filter filter, Update update) {
  const auto count = static_cast<int64_t>(items.size());
  torch::stable::parallel_for(0, count, kGrainSize, [&](int64_t begin, int64_t end) {
    newton_schulz::SmallIteration iteration(schedule);
    std::vector<float> values;
    for (int64_t i = begin; i < end; ++i) {
      const Item& item = items[i];
      const int64_t numel = item.buffers.numel, size = item.shape.rows * item.shape.columns;
      values.resize(std::max<size_t>(values.size(), numel));
      auto buffers = item.buffers;
      buffers.update = values.data();
      filter(scalars.filter, buffers, 0, numel);
      for (int64_t at = 0; at < numel; at += size) {
        iteration.run(item.shape, values.data() + at, values.data() + at);
      }
      const auto factors =
          orthogonal_update::make_coefficients(scalars.lr, scalars.weight_decay, item.scale);
      update(factors, {item.weight, values.data(), numel}, 0, numel);
    }
  });
}

void small_muon_step_cpu(Tensors weights, Tensors grads, Tensors emas, Tensors momenta,
                         std::vector<int64_t> rows, std::vector<int64_t> columns,
                         std::vector<double> scales, std::vector<double> coefficients, double lr,
                         double weight_decay, double alpha, double lamb, double beta,
                         bool nesterov) {
  const auto items = check_and_unpack(weights, grads, emas, momenta, rows, columns, scales, lamb);
  const auto schedule = newton_schulz::schedule_of(coefficients);
  const Scalars scalars{grokfast::make_coefficients(alpha, lamb, beta), lr, weight_decay};
  grokfast::dispatch(!emas.empty(), nesterov, [&](auto filtered, auto is_nesterov) {
    run(items, schedule, scalars,
        grokfast::select_kernel<float, filtered.value, is_nesterov.value>(),
        orthogonal_update::select_kernel<float>());
  });
}

}  // namespace
}  // namespace distforge::small_step

STABLE_TORCH_LIBRARY_IMPL(distforge, CPU, m) {
  m.impl("small_muon_step_", TORCH_BOX(&distforge::small_step::small_muon_step_cpu));
}
