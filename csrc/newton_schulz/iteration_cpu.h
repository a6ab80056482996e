#pragma once

#include <cstdint>
#include <functional>

#include "newton_schulz/plan.h"
#include "newton_schulz/product.h"

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

  // `in` and `out` are contiguous rows x columns and do not overlap.
  template <typename Element>
  void run(const Schedule& schedule, const Element* in, Element* out);

 private:
  using Matrix = Panels<T>;

  // Where the last product goes: the caller's matrix, in either type.
  struct Output {
    RowMajor<float> as_float;
    RowMajor<bfloat16> as_bfloat16;
  };

  static void clear_margins(Matrix matrix, int64_t rows, int64_t columns, int64_t width);
  template <typename Element>
  void load(const Element* in, double scale);
  void multiply(Product<T> product);
  static void add(Product<T>& product, float scale, Matrix d);
  void gram(Matrix out);
  void polynomial(const Step& step, float identity, Matrix r, Matrix out);
  void symmetric(Matrix a, Matrix b, float d1_scale, Matrix d1, float d2_scale, Matrix d2,
                 Matrix out);
  void apply(float x_scale, Matrix q);
  void finish(float x_scale, Matrix q, const Output& output);
  void direct_form(const Schedule& schedule, const Output& output);
  void gram_form(const Schedule& schedule, const Output& output);

  const BlockKernel<T>& kernel_;
  Shape shape_;
  Team team_;
  int64_t n_, k_, bytes_;
  unsigned char* memory_;
  Workspace* workspaces_;
  // X as n x k, its successor, and X^T as k x n.
  Matrix x_, next_x_, xt_;
  Matrix square_[5];
};

}  // namespace distforge::newton_schulz
