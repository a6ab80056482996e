// The CPU kernels without torch, built with the address and undefined-behaviour sanitizers by
// tests/unit/ops/test_sanitized.py. Buffers have exactly the size that the kernels may touch. Every
// instruction set that this processor has is run, and held against a plain loop in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "common/tensor_list.h"
#include "grokfast/kernels_cpu.h"
#include "iterate_in_double.h"
#include "newton_schulz/blocks.h"
#include "newton_schulz/iteration_cpu.h"
#include "newton_schulz/order_cpu.h"
#include "newton_schulz/small_cpu.h"
#include "orthogonal_update/kernels_cpu.h"

namespace {

using namespace distforge;
using namespace distforge::newton_schulz;

int failures = 0;

void expect(bool ok, const char* what, const char* where, long a = 0, long b = 0) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s (%s, %ld, %ld)\n", what, where, a, b);
}

double random_value() { return 2.0 * std::rand() / RAND_MAX - 1.0; }

template <typename T>
std::unique_ptr<T[]> exactly(size_t count) {
  std::unique_ptr<T[]> buffer(new T[count]);
  for (size_t i = 0; i < count; ++i) buffer[i] = T(static_cast<float>(random_value()));
  return buffer;
}

template <typename T, typename Element>
void check_iteration(const BlockKernel<T>& kernel, Shape shape, double tolerance) {
  const Schedule schedule(5, Step{3.4445f, -4.7750f, 2.0315f});
  const size_t count = shape.rows * shape.columns;
  const auto in = exactly<Element>(count);
  auto out = exactly<Element>(count), again = exactly<Element>(count);
  const std::vector<Task> tasks = ProgramBuilder(shape).build(schedule);
  MatrixIteration<T> iteration(kernel, shape, team_of_one());
  iteration.run(tasks, in.get(), out.get());
  const Dense wanted = iterate_in_double(in.get(), shape, schedule);
  double error = 0.0, norm = 0.0;
  for (size_t i = 0; i < count; ++i) {
    error += std::pow(static_cast<float>(out[i]) - wanted[i], 2.0);
    norm += wanted[i] * wanted[i];
  }
  expect(std::sqrt(error / norm) < tolerance, "differs from double", kernel.name, shape.rows,
         shape.columns);
  // The scratch of the first run must not show in the second.
  iteration.run(tasks, in.get(), again.get());
  for (size_t i = 0; i < count; ++i) {
    if (static_cast<float>(out[i]) != static_cast<float>(again[i])) {
      expect(false, "a second run differs", kernel.name, shape.rows, shape.columns);
      break;
    }
  }
}

void check_iterations() {
  std::vector<BlockKernel<float>> kernels{float_blocks_default()};
  std::vector<BlockKernel<bfloat16>> half_kernels;
#ifdef DISTFORGE_X86
  if (cpu_capability() >= CpuCapability::kAvx2) kernels.push_back(float_blocks_avx2());
  if (cpu_capability() >= CpuCapability::kAvx512) kernels.push_back(float_blocks_avx512());
  if (cpu_multiplies_bfloat16()) half_kernels.push_back(bfloat16_blocks_avx512());
  if (cpu_has_amx()) half_kernels.push_back(bfloat16_blocks_amx());
#endif
  const Shape shapes[] = {{1, 1},    {1, 7},    {5, 5},    {8, 12},  {13, 29},  {29, 13},
                          {48, 48},  {49, 97},  {96, 96},  {97, 96}, {97, 145}, {101, 103},
                          {33, 200}, {200, 33}, {193, 97}, {7, 600}};
  for (const Shape& shape : shapes) {
    for (const auto& kernel : kernels) {
      check_iteration<float, float>(kernel, shape, 2e-5);
      check_iteration<float, bfloat16>(kernel, shape, 2e-2);
    }
    for (const auto& kernel : half_kernels) {
      check_iteration<bfloat16, bfloat16>(kernel, shape, 6e-2);
    }
  }
}

// Of the instruction set that the environment chooses.
template <typename Element>
void check_small(Shape shape, double tolerance) {
  const Schedule schedule(5, Step{3.4445f, -4.7750f, 2.0315f});
  const size_t count = shape.rows * shape.columns;
  const auto in = exactly<Element>(count);
  auto out = exactly<Element>(count);
  SmallIteration iteration(schedule);
  iteration.run(shape, in.get(), out.get());
  const Dense wanted = iterate_in_double(in.get(), shape, schedule);
  iteration.run(shape, in.get(), in.get());
  for (size_t i = 0; i < count; ++i) {
    const float found = static_cast<float>(out[i]);
    expect(std::fabs(found - wanted[i]) <= tolerance, "differs from double", "small", shape.rows,
           shape.columns);
    expect(static_cast<float>(in[i]) == found, "in place differs", "small", shape.rows,
           shape.columns);
  }
}

void check_small_ones() {
  const Shape shapes[] = {{1, 1},   {1, 7},   {5, 5},    {8, 12},   {16, 16},
                          {13, 24}, {24, 24}, {256, 24}, {24, 256}, {17, 9}};
  for (const Shape& shape : shapes) {
    expect(is_small(shape), "not small", "small", shape.rows, shape.columns);
    // Rounded once, where the exact values are below 1.3.
    check_small<float>(shape, 1.2e-7);
    check_small<bfloat16>(shape, 4e-3);
  }
}

void check_triangle(Block (*block_of)(int64_t, int64_t), const char* name) {
  for (int64_t size = 1; size < 40; ++size) {
    std::set<std::pair<int64_t, int64_t>> seen;
    for (int64_t index = 0; index < triangle_count(size); ++index) {
      const Block block = block_of(index, size);
      expect(block.column >= 0 && block.column <= block.row && block.row < size,
             "a block outside the triangle", name, index, size);
      seen.insert({block.row, block.column});
    }
    expect(static_cast<int64_t>(seen.size()) == triangle_count(size), "a block twice", name, size);
  }
}

void check_rectangle() {
  for (int64_t rows = 1; rows < 12; ++rows) {
    for (int64_t columns = 1; columns < 12; ++columns) {
      std::set<std::pair<int64_t, int64_t>> seen;
      for (int64_t index = 0; index < rows * columns; ++index) {
        const Block block = rectangle_strip_block(index, rows, columns);
        expect(block.row >= 0 && block.row < rows && block.column >= 0 && block.column < columns,
               "a block outside the rectangle", "rectangle_strip_block", rows, columns);
        seen.insert({block.row, block.column});
      }
      expect(static_cast<int64_t>(seen.size()) == rows * columns, "a block twice",
             "rectangle_strip_block", rows, columns);
    }
  }
}

void check_segments() {
  const Step quintic{3.4445f, -4.7750f, 2.0315f}, steep{8.2f, -23.0f, 17.0f};
  for (int64_t steps = 1; steps < 20; ++steps) {
    for (const Step& step : {quintic, steep}) {
      int64_t sum = 0;
      for (const int64_t length : gram_segments(Schedule(steps, step))) {
        expect(length >= 1 && length <= 3, "a segment too long", "gram_segments", length);
        sum += length;
      }
      expect(sum == steps, "segments miss a step", "gram_segments", steps, sum);
    }
  }
  expect(gram_segments(Schedule(5, quintic)) == std::vector<int64_t>{3, 2}, "quintic is 3 + 2",
         "gram_segments");
  expect(gram_segments(Schedule(5, steep)) == std::vector<int64_t>{2, 2, 1}, "steep is 2 + 2 + 1",
         "gram_segments");
}

template <typename Update, bool kHasEma>
void check_momentum(int64_t count) {
  const auto c = grokfast::make_coefficients(0.98, kHasEma ? 2.0 : 0.0, 0.95);
  auto g = exactly<float>(count), h = exactly<float>(count), m = exactly<float>(count);
  auto u = exactly<Update>(count);
  const std::vector<float> h0(h.get(), h.get() + count), m0(m.get(), m.get() + count);
  const grokfast::Buffers<Update> buffers{g.get(), kHasEma ? h.get() : nullptr, m.get(), u.get(),
                                          count};
  grokfast::select_kernel<Update, kHasEma, true>()(c, buffers, 0, count / 3);
  grokfast::select_kernel<Update, kHasEma, true>()(c, buffers, count / 3, count);
  for (int64_t i = 0; i < count; ++i) {
    const double filtered = g[i] + (kHasEma ? 2.0 * (0.98 * h0[i] + 0.02 * g[i]) : 0.0);
    const double momentum = 0.95 * m0[i] + 0.05 * filtered;
    const double update = 0.05 * filtered + 0.95 * momentum;
    const double tolerance = sizeof(Update) == 2 ? 0.004 * std::fabs(update) + 1e-6 : 1e-6;
    expect(std::fabs(m[i] - momentum) < 1e-6, "momentum", "grokfast", i, count);
    expect(std::fabs(static_cast<float>(u[i]) - update) <= tolerance, "update", "grokfast", i,
           count);
  }
}

template <typename Update>
void check_weight_update(int64_t count) {
  const auto c = orthogonal_update::make_coefficients(0.02, 0.1, 1.5);
  auto w = exactly<float>(count);
  auto o = exactly<Update>(count);
  const std::vector<float> w0(w.get(), w.get() + count);
  orthogonal_update::select_kernel<Update>()(c, {w.get(), o.get(), count}, 0, count);
  for (int64_t i = 0; i < count; ++i) {
    const double wanted = (1.0 - 0.02 * 0.1) * w0[i] - 0.02 * 1.5 * static_cast<float>(o[i]);
    expect(std::fabs(w[i] - wanted) < 2e-7, "weight", "orthogonal_update", i, count);
  }
}

struct Sized {
  int64_t numel;
};

void check_element_range() {
  const std::vector<Sized> items{{0}, {3}, {0}, {0}, {5}, {1}, {0}};
  const ElementRange range(items);
  expect(range.numel() == 9, "total", "ElementRange", range.numel());
  for (int64_t begin = 0; begin <= 9; ++begin) {
    for (int64_t end = begin; end <= 9; ++end) {
      std::vector<std::pair<size_t, int64_t>> visited, wanted;
      range.for_each(begin, end, [&](size_t index, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) visited.push_back({index, i});
      });
      int64_t position = 0;
      for (size_t index = 0; index < items.size(); ++index) {
        for (int64_t i = 0; i < items[index].numel; ++i, ++position) {
          if (position >= begin && position < end) wanted.push_back({index, i});
        }
      }
      expect(visited == wanted, "elements of a range", "ElementRange", begin, end);
    }
  }
}

}  // namespace

int main() {
  check_triangle(&triangle_block, "triangle_block");
  check_triangle(&triangle_strip_block, "triangle_strip_block");
  check_rectangle();
  check_segments();
  check_element_range();
  for (const int64_t count : {1, 7, 16, 33, 1000}) {
    check_momentum<float, true>(count);
    check_momentum<float, false>(count);
    check_momentum<bfloat16, true>(count);
    check_weight_update<float>(count);
    check_weight_update<bfloat16>(count);
  }
  check_iterations();
  check_small_ones();
  std::printf("%s: %d failed, capability %s\n", failures == 0 ? "ok" : "FAILED", failures,
              cpu_capability_name());
  return failures == 0 ? 0 : 1;
}
