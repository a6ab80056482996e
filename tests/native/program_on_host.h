#pragma once

// What the host twins of the CUDA products share: the buffers of a batch, the preparation of the
// input, and the check of a whole program.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "iterate_in_double.h"
#include "newton_schulz/launch.h"
#include "newton_schulz/prepare.h"
#include "newton_schulz/symmetric_gemm.cuh"

namespace distforge::newton_schulz {

inline int failures = 0;

inline void expect(bool ok, const char* what, long a = 0, long b = 0, long c = 0) {
  if (ok) return;
  if (++failures < 20) std::printf("FAILED: %s (%ld, %ld, %ld)\n", what, a, b, c);
}

// All buffers of a batch, each of exactly its size, so that the sanitizer sees what leaves one.
template <typename T>
struct Batch {
  Batch(Shape shape, int64_t count) : shape(shape), count(count) {
    const int64_t n = shape.n(), k = shape.k();
    add(kX, n, k);
    add(kNextX, n, k);
    add(kXt, k, n);
    add(kNextXt, k, n);
    for (int64_t i = 0; i < square_buffers(shape); ++i) add(kSquare + i, n, n);
    out.reset(new T[count * shape.rows * shape.columns]);
    table.view[kOut] = {out.get(), shape.columns, shape.rows * shape.columns};
  }

  void add(int index, int64_t rows, int64_t columns) {
    const int64_t ld = padded_row(columns), size = count * rows * ld;
    memory[index].reset(new T[size]);
    // Not zeros: the kernels themselves have to write the padding.
    for (int64_t i = 0; i < size; ++i) memory[index][i] = T(1e3f);
    table.view[index] = {memory[index].get(), ld, rows * ld};
  }

  Shape shape;
  int64_t count;
  BufferTable table{};
  std::map<int, std::unique_ptr<T[]>> memory;
  std::unique_ptr<T[]> out;
};

// norm_kernel and scale_kernel.
template <typename T>
void prepare_on_host(const std::vector<T>& x, Batch<T>& batch) {
  const Shape shape = batch.shape;
  const BatchView same = batch.table.view[shape.tall() ? kXt : kX];
  const BatchView turned = batch.table.view[shape.tall() ? kX : kXt];
  const int64_t size = shape.rows * shape.columns;
  for (int64_t number = 0; number < batch.count; ++number) {
    double parts[kNormParts] = {};
    for (int part = 0; part < kNormParts; ++part) {
      for (int thread = 0; thread < kNormThreads; ++thread) {
        parts[part] += squares_of_thread(x.data() + number * size, size, part, thread);
      }
    }
    const double factor = inverse_norm(parts);
    T* to = static_cast<T*>(same.data) + number * same.stride;
    T* to_turned = static_cast<T*>(turned.data) + number * turned.stride;
    for (int64_t row0 = 0; row0 < padded_row(shape.rows); row0 += kScaleTile) {
      for (int64_t column0 = 0; column0 < padded_row(shape.columns); column0 += kScaleTile) {
        for (int thread = 0; thread < kScaleThreads; ++thread) {
          for (int i = 0; i < kScaleTile / 8; ++i) {
            const int64_t r = row0 + scale_row(thread, i), c = column0 + scale_column(thread);
            T value = T(0.0f);
            if (r < shape.rows && c < shape.columns) {
              value = T(scaled(x[number * size + r * shape.columns + c], factor));
            }
            if (r < shape.rows && c < same.ld) to[r * same.ld + c] = value;
            if (c < shape.columns && r < turned.ld) to_turned[c * turned.ld + r] = value;
          }
        }
      }
    }
  }
}

// Whether the command line asks for all shapes ("all") or for few.
inline bool all_shapes(int count, char** words) {
  return count > 1 && std::strcmp(words[1], "all") == 0;
}

// Runs the whole program of two matrices, the second with a NaN in it, tile by tile through
// `run_tile(task, buffers, number of the matrix, block)`, and compares with the iteration in
// double.
template <typename T, typename RunTile>
void check_program(Shape shape, double tolerance, RunTile run_tile) {
  constexpr int64_t kCount = 2;
  const Schedule schedule(5, Step{3.4445f, -4.7750f, 2.0315f});
  const int64_t size = shape.rows * shape.columns;
  std::vector<T> x(kCount * size);
  for (T& value : x) value = T(static_cast<float>(2.0 * std::rand() / RAND_MAX - 1.0));
  // A bad matrix behind the good one.
  x[size] = T(NAN);
  Batch<T> batch(shape, kCount);
  prepare_on_host(x, batch);
  for (const Task& task : ProgramBuilder(shape).build(schedule)) {
    for (int64_t number = 0; number < kCount; ++number) {
      for (int64_t i = 0; i < tile_count(task); ++i) {
        run_tile(task, batch.table, number, tile_at(task, i));
      }
    }
  }
  const Dense wanted = iterate_in_double(x.data(), shape, schedule);
  double error = 0.0, norm = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    error += std::pow(static_cast<float>(batch.out[i]) - wanted[i], 2.0);
    norm += wanted[i] * wanted[i];
    expect(std::isnan(static_cast<float>(batch.out[size + i])), "a bad matrix is NaN", i);
  }
  expect(std::sqrt(error / norm) < tolerance, "the program differs from double", shape.rows,
         shape.columns, std::lround(1e9 * std::sqrt(error / norm)));
}

}  // namespace distforge::newton_schulz
