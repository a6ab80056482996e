#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "newton_schulz/arguments.h"
#include "newton_schulz/blocks.h"
#include "newton_schulz/iteration_cpu.h"
#include "newton_schulz/small_cpu.h"

namespace distforge::newton_schulz {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Multiply-adds below which a second thread costs more than it brings.
constexpr double kGrainSize = 4e6;
// From this order on the threads share each matrix: the scratch of one for every thread would no
// longer fit into the caches.
constexpr int64_t kSharedOrder = 768;

// All threads of torch's pool; each takes the next index that is free.
Team team_of(int64_t workers) {
  return {workers, [workers](int64_t count, const std::function<void(int64_t, int64_t)>& task) {
            std::atomic<int64_t> next{0};
            torch::stable::parallel_for(0, std::min(workers, count), 1,
                                        [&](int64_t begin, int64_t end) {
                                          for (int64_t worker = begin; worker < end; ++worker) {
                                            for (int64_t i; (i = next.fetch_add(1)) < count;)
                                              task(i, worker);
                                          }
                                        });
          }};
}

template <typename Element>
void run_small(const Schedule& schedule, Shape shape, const Element* in, Element* out,
               int64_t count) {
  const int64_t size = shape.rows * shape.columns;
  const double work = 4.0 * schedule.size() * shape.n() * shape.n() * shape.k();
  const auto grain = static_cast<int64_t>(kGrainSize / 4 / work) + 1;
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    SmallIteration iteration(schedule);
    for (int64_t i = begin; i < end; ++i) iteration.run(shape, in + i * size, out + i * size);
  });
}

template <typename T, typename Element>
void run_batch(const BlockKernel<T>& kernel, const Schedule& schedule, Shape shape,
               const Element* in, Element* out, int64_t count) {
  if (is_small(shape)) return run_small(schedule, shape, in, out, count);
  const std::vector<Task> tasks = ProgramBuilder(shape).build(schedule);
  const int64_t size = shape.rows * shape.columns;
  const double work = 4.0 * schedule.size() * shape.n() * shape.n() * shape.k();
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  // Whole rounds of one matrix a thread, which meet nowhere; what is left over is shared.
  int64_t alone = shape.n() >= kSharedOrder ? 0 : count / threads * threads;
  if (work < kGrainSize * threads) alone = count;
  const auto worthwhile = static_cast<int64_t>(alone * work / kGrainSize) + 1;
  const int64_t workers = std::min({threads, worthwhile, std::max<int64_t>(alone, 1)});
  std::vector<std::unique_ptr<MatrixIteration<T>>> iterations(workers);
  team_of(workers).run(alone, [&](int64_t i, int64_t worker) {
    auto& iteration = iterations[worker];
    if (!iteration) {
      iteration = std::make_unique<MatrixIteration<T>>(kernel, shape, team_of_one());
    }
    iteration->run(tasks, in + i * size, out + i * size);
  });
  if (alone == count) return;
  iterations.clear();
  MatrixIteration<T> iteration(kernel, shape, team_of(threads));
  for (int64_t i = alone; i < count; ++i) iteration.run(tasks, in + i * size, out + i * size);
}

Tensor newton_schulz_cpu(const Tensor& x, std::vector<double> coefficients) {
  const auto type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16,
                  "x must be float32 or bfloat16");
  const Arguments arguments = check_and_unpack(x, coefficients);
  Tensor result = torch::stable::empty_like(x);
  if (x.numel() == 0) return result;
  const auto& [schedule, shape, count] = arguments;
  if (type == ScalarType::Float) {
    run_batch(float_blocks(), schedule, shape, x.const_data_ptr<float>(),
              result.mutable_data_ptr<float>(), count);
    return result;
  }
  const auto* in = static_cast<const bfloat16*>(x.const_data_ptr());
  auto* out = static_cast<bfloat16*>(result.mutable_data_ptr());
  if (const auto* kernel = bfloat16_blocks()) {
    run_batch(*kernel, schedule, shape, in, out, count);
  } else {
    run_batch(float_blocks(), schedule, shape, in, out, count);
  }
  return result;
}

}  // namespace
}  // namespace distforge::newton_schulz

STABLE_TORCH_LIBRARY_IMPL(distforge, CPU, m) {
  m.impl("newton_schulz", TORCH_BOX(&distforge::newton_schulz::newton_schulz_cpu));
}
