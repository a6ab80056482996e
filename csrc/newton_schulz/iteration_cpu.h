#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "newton_schulz/product.h"
#include "newton_schulz/program.h"

namespace distforge::newton_schulz {

// Calls task(index, worker) for each index below `count`, in any order, on up to workers() threads
// at once; a worker's number is below workers().
struct Team {
  int64_t workers;
  std::function<void(int64_t count, const std::function<void(int64_t, int64_t)>& task)> run;
};

Team team_of_one();

// The iteration on one matrix at a time, with scratch that is allocated once. T is what the
// products read: float or bfloat16.
template <typename T>
class MatrixIteration {
 public:
  MatrixIteration(const BlockKernel<T>& kernel, Shape shape, Team team);
  ~MatrixIteration();
  MatrixIteration(const MatrixIteration&) = delete;
  MatrixIteration& operator=(const MatrixIteration&) = delete;

  // Walks a program of this shape (ProgramBuilder). `in` and `out` are contiguous rows x columns
  // and do not overlap.
  template <typename Element>
  void run(const std::vector<Task>& tasks, const Element* in, Element* out);

 private:
  using Matrix = Panels<T>;

  static void clear_margins(Matrix matrix, int64_t rows, int64_t columns, int64_t width);
  template <typename Element>
  void load(const Element* in, double scale);
  Product<T> product_of(const Task& task) const;
  void multiply(const Product<T>& product);

  const BlockKernel<T>& kernel_;
  Shape shape_;
  Team team_;
  int64_t bytes_;
  unsigned char* memory_;
  Workspace* workspaces_;
  // By BufferIndex; that of kNone and the caller's are null.
  Matrix buffers_[kNumBuffers] = {};
};

}  // namespace distforge::newton_schulz
