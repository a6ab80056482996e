#include "newton_schulz/iteration_cpu.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "common/bfloat16.h"
#include "newton_schulz/order_cpu.h"

namespace distforge::newton_schulz {
namespace {

constexpr int64_t kAlignment = 64;

// glibc gives a block this large back to the system as soon as it is freed: the next matrix finds
// nothing but pages that were never touched. In huge ones, where Linux has them, that costs a
// virtual machine 10 ms for 64 MB, and 50 in small ones (measured; 1024 x 4096 takes 300 ms).
constexpr int64_t kLargeScratch = 32 << 20, kHugePage = 2 << 20;

int64_t alignment_of(int64_t bytes) { return bytes >= kLargeScratch ? kHugePage : kAlignment; }

unsigned char* allocate(int64_t bytes) {
  const std::align_val_t alignment{static_cast<size_t>(alignment_of(bytes))};
  void* memory = ::operator new(bytes, alignment);
#if defined(__linux__)
  // It is a hint; what is left of the last page stays small.
  if (bytes >= kLargeScratch) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return static_cast<unsigned char*>(memory);
}

int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

template <typename Element, typename T>
const InputKernel<Element>& input_of(const BlockKernel<T>& kernel) {
  if constexpr (std::is_same_v<Element, float>) {
    return kernel.from_float;
  } else {
    return kernel.from_bfloat16;
  }
}

}  // namespace

Team team_of_one() {
  return {1, [](int64_t count, const std::function<void(int64_t, int64_t)>& task) {
            for (int64_t index = 0; index < count; ++index) task(index, 0);
          }};
}

template <typename T>
MatrixIteration<T>::MatrixIteration(const BlockKernel<T>& kernel, Shape shape, Team team)
    : kernel_(kernel), shape_(shape), team_(std::move(team)), n_(shape.n()), k_(shape.k()) {
  const int64_t squares = shape.gram_form() ? 5 : 2;
  const auto bytes = [&](int64_t rows, int64_t columns) {
    const int64_t elements = round_up(rows, kernel.depth) * round_up(columns, kernel.panel_width);
    return round_up(elements * sizeof(T), kAlignment);
  };
  const int64_t wide = bytes(n_, k_), high = bytes(k_, n_), square = bytes(n_, n_);
  // X^T and the square matrices are left factors as well.
  const int64_t left = kernel.reads_turned ? 2 : 1;
  const int64_t matrices = 2 * wide + left * (high + squares * square);
  bytes_ = matrices + team_.workers * sizeof(Workspace);
  memory_ = allocate(bytes_);
  unsigned char* next = memory_;
  const auto take = [&](int64_t size, int64_t rows, int64_t columns, bool turned) {
    T* begin = reinterpret_cast<T*>(next);
    T* again = turned ? reinterpret_cast<T*>(next + size) : nullptr;
    next += turned ? 2 * size : size;
    const Matrix matrix{begin, round_up(rows, kernel.depth), again};
    clear_margins(matrix, rows, columns, kernel.panel_width);
    return matrix;
  };
  x_ = take(wide, n_, k_, false);
  next_x_ = take(wide, n_, k_, false);
  xt_ = take(high, k_, n_, kernel.reads_turned);
  for (int64_t i = 0; i < squares; ++i) square_[i] = take(square, n_, n_, kernel.reads_turned);
  workspaces_ = reinterpret_cast<Workspace*>(next);
}

// The margins of the panels are multiplied: what lies beyond the summed dimension must be zero, and
// elsewhere, where nothing is read, no denormal may slow that down. Columns beyond the matrix are
// in the last panel, rows in each.
template <typename T>
void MatrixIteration<T>::clear_margins(Matrix matrix, int64_t rows, int64_t columns,
                                       int64_t width) {
  const int64_t begin = rows == matrix.rows ? columns / width * width * matrix.rows : 0;
  const int64_t count = round_up(columns, width) * matrix.rows - begin;
  std::memset(matrix.data + begin, 0, count * sizeof(T));
  if (matrix.turned != nullptr) std::memset(matrix.turned + begin, 0, count * sizeof(T));
}

template <typename T>
MatrixIteration<T>::~MatrixIteration() {
  ::operator delete(memory_, std::align_val_t{static_cast<size_t>(alignment_of(bytes_))});
}

template <typename T>
template <typename Element>
void MatrixIteration<T>::run(const Schedule& schedule, const Element* in, Element* out) {
  const int64_t chunks = ceil_div(shape_.rows, kBlock);
  std::vector<double> sums(chunks);
  team_.run(chunks, [&](int64_t chunk, int64_t) {
    const int64_t begin = chunk * kBlock, end = std::min(begin + kBlock, shape_.rows);
    sums[chunk] = input_of<Element>(kernel_).squares(in + begin * shape_.columns,
                                                     (end - begin) * shape_.columns);
  });
  double sum = 0.0;
  for (const double part : sums) sum += part;
  if (!std::isfinite(sum) || sum == 0.0) {
    const float value = sum == 0.0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
    std::fill_n(out, shape_.rows * shape_.columns, Element(value));
    return;
  }
  load(in, 1.0 / std::sqrt(sum));
  Output output{};
  if constexpr (std::is_same_v<Element, float>) {
    output.as_float = {out, shape_.columns, shape_.tall()};
  } else {
    output.as_bfloat16 = {out, shape_.columns, shape_.tall()};
  }
  shape_.gram_form() ? gram_form(schedule, output) : direct_form(schedule, output);
}

// Fills X and X^T with the scaled input.
template <typename T>
template <typename Element>
void MatrixIteration<T>::load(const Element* in, double scale) {
  const Matrix same = shape_.tall() ? xt_ : x_;
  const Matrix turned = shape_.tall() ? x_ : xt_;
  const int64_t block_columns = ceil_div(shape_.columns, kBlock);
  team_.run(ceil_div(shape_.rows, kBlock) * block_columns, [&](int64_t index, int64_t worker) {
    const Block block = rectangle_block(index, block_columns);
    const int64_t i0 = block.row * kBlock, j0 = block.column * kBlock;
    const int64_t rows = std::min(kBlock, shape_.rows - i0);
    const int64_t columns = std::min(kBlock, shape_.columns - j0);
    Workspace& workspace = workspaces_[worker];
    const Element* from = in + i0 * shape_.columns + j0;
    input_of<Element>(kernel_).scale(from, shape_.columns, rows, columns, scale, workspace.values);
    kernel_.place(workspace, block, rows, columns, same, turned, team_.workers > 1);
  });
}

template <typename T>
void MatrixIteration<T>::multiply(Product<T> product) {
  product.shared = team_.workers > 1;
  const int64_t block_rows = ceil_div(product.m, kBlock);
  const int64_t block_columns = ceil_div(product.n, kBlock);
  const int64_t count = product.symmetric ? triangle_count(block_rows) : block_rows * block_columns;
  team_.run(count, [&](int64_t index, int64_t worker) {
    const Block block = product.symmetric ? triangle_strip_block(index, block_rows)
                                          : rectangle_strip_block(index, block_rows, block_columns);
    kernel_.run(product, block, workspaces_[worker]);
  });
}

// An addend whose factor is 0 is not read.
template <typename T>
void MatrixIteration<T>::add(Product<T>& product, float scale, Matrix d) {
  if (scale == 0.0f) return;
  if (!product.d1) {
    product.d1 = d;
    product.d1_scale = scale;
  } else {
    product.d2 = d;
    product.d2_scale = scale;
  }
}

// out = X X^T.
template <typename T>
void MatrixIteration<T>::gram(Matrix out) {
  multiply({.m = n_, .n = n_, .k = k_, .a = xt_, .b = xt_, .c = out, .symmetric = true});
}

// out = b R + c R^2 + identity I.
template <typename T>
void MatrixIteration<T>::polynomial(const Step& step, float identity, Matrix r, Matrix out) {
  Product<T> product{.m = n_,
                     .n = n_,
                     .k = n_,
                     .a = r,
                     .b = r,
                     .product_scale = step.c,
                     .identity = identity,
                     .c = out,
                     .symmetric = true};
  add(product, step.b, r);
  multiply(product);
}

// out = A B + d1_scale D1 + d2_scale D2 of n x n symmetric matrices that commute.
template <typename T>
void MatrixIteration<T>::symmetric(Matrix a, Matrix b, float d1_scale, Matrix d1, float d2_scale,
                                   Matrix d2, Matrix out) {
  Product<T> product{.m = n_, .n = n_, .k = n_, .a = a, .b = b, .c = out, .symmetric = true};
  add(product, d1_scale, d1);
  add(product, d2_scale, d2);
  multiply(product);
}

// X <- x_scale X + Q X, and X^T with it.
template <typename T>
void MatrixIteration<T>::apply(float x_scale, Matrix q) {
  Product<T> product{.m = n_, .n = k_, .k = n_, .a = q, .b = x_, .c = next_x_, .ct = xt_};
  add(product, x_scale, x_);
  multiply(product);
  std::swap(x_, next_x_);
}

// The last of them, straight to the caller's matrix.
template <typename T>
void MatrixIteration<T>::finish(float x_scale, Matrix q, const Output& output) {
  Product<T> product{.m = n_,
                     .n = k_,
                     .k = n_,
                     .a = q,
                     .b = x_,
                     .out_float = output.as_float,
                     .out_bfloat16 = output.as_bfloat16};
  add(product, x_scale, x_);
  multiply(product);
}

template <typename T>
void MatrixIteration<T>::direct_form(const Schedule& schedule, const Output& output) {
  for (size_t i = 0; i < schedule.size(); ++i) {
    const float z_scale = separate_scale(schedule, i);
    gram(square_[0]);
    polynomial(schedule[i], schedule[i].a - z_scale, square_[0], square_[1]);
    i + 1 < schedule.size() ? apply(z_scale, square_[1]) : finish(z_scale, square_[1], output);
  }
}

// A step is also R <- (z_scale + Z) R (z_scale + Z), which spares X. The product of the factors
// over a segment is kept as q_scale + Q, with Q apart for the same reason as Z.
template <typename T>
void MatrixIteration<T>::gram_form(const Schedule& schedule, const Output& output) {
  Matrix r = square_[0], t = square_[1], z = square_[2], q = square_[3], next_q = square_[4];
  size_t index = 0;
  for (const int64_t length : gram_segments(schedule)) {
    gram(r);
    float q_scale = 1.0f;
    for (int64_t i = 0; i < length; ++i, ++index) {
      const float z_scale = separate_scale(schedule, index);
      polynomial(schedule[index], schedule[index].a - z_scale, r, z);
      if (i + 1 < length) {
        symmetric(z, r, z_scale, r, 0.0f, r, t);
        symmetric(t, z, z_scale, t, 0.0f, t, r);
      }
      if (i == 0) {
        std::swap(q, z);
      } else {
        symmetric(z, q, z_scale, q, q_scale, z, next_q);
        std::swap(q, next_q);
      }
      q_scale *= z_scale;
    }
    index < schedule.size() ? apply(q_scale, q) : finish(q_scale, q, output);
  }
}

template class MatrixIteration<float>;
template void MatrixIteration<float>::run(const Schedule&, const float*, float*);
template void MatrixIteration<float>::run(const Schedule&, const bfloat16*, bfloat16*);
template class MatrixIteration<bfloat16>;
template void MatrixIteration<bfloat16>::run(const Schedule&, const bfloat16*, bfloat16*);

}  // namespace distforge::newton_schulz
