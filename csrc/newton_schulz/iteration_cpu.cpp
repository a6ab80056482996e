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
    : kernel_(kernel), shape_(shape), team_(std::move(team)) {
  const int64_t n = shape.n(), k = shape.k(), squares = square_buffers(shape);
  const auto bytes = [&](int64_t rows, int64_t columns) {
    const int64_t elements = round_up(rows, kernel.depth) * round_up(columns, kernel.panel_width);
    return round_up(elements * sizeof(T), kAlignment);
  };
  const int64_t wide = bytes(n, k), high = bytes(k, n), square = bytes(n, n);
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
  buffers_[kX] = take(wide, n, k, false);
  buffers_[kNextX] = take(wide, n, k, false);
  // One for both: the product that writes the transpose of the next X reads none.
  buffers_[kXt] = buffers_[kNextXt] = take(high, k, n, kernel.reads_turned);
  for (int64_t i = 0; i < squares; ++i) {
    buffers_[kSquare + i] = take(square, n, n, kernel.reads_turned);
  }
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
void MatrixIteration<T>::run(const std::vector<Task>& tasks, const Element* in, Element* out) {
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
  for (const Task& task : tasks) {
    Product<T> product = product_of(task);
    const RowMajor<Element> target{task.out ? out : nullptr, shape_.columns, task.out == 2};
    if constexpr (std::is_same_v<Element, float>) {
      product.out_float = target;
    } else {
      product.out_bfloat16 = target;
    }
    multiply(product);
  }
}

// Fills X and X^T with the scaled input.
template <typename T>
template <typename Element>
void MatrixIteration<T>::load(const Element* in, double scale) {
  const Matrix same = buffers_[shape_.tall() ? kXt : kX];
  const Matrix turned = buffers_[shape_.tall() ? kX : kXt];
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

// Panels are read along their columns where the rows of a task's factors are: both factors are the
// transposes of what it names. Addends and results are what it says.
template <typename T>
Product<T> MatrixIteration<T>::product_of(const Task& task) const {
  return {.m = task.m,
          .n = task.n,
          .k = task.k,
          .a = buffers_[transpose_of(task.a)],
          .b = buffers_[transpose_of(task.bt)],
          .product_scale = task.product_scale,
          .d1 = buffers_[task.d1],
          .d2 = buffers_[task.d2],
          .d1_scale = task.d1_scale,
          .d2_scale = task.d2_scale,
          .identity = task.identity,
          .c = buffers_[task.c],
          .ct = buffers_[task.ct],
          .shared = team_.workers > 1,
          .symmetric = task.symmetric != 0};
}

template <typename T>
void MatrixIteration<T>::multiply(const Product<T>& product) {
  const int64_t block_rows = ceil_div(product.m, kBlock);
  const int64_t block_columns = ceil_div(product.n, kBlock);
  const int64_t count = product.symmetric ? triangle_count(block_rows) : block_rows * block_columns;
  team_.run(count, [&](int64_t index, int64_t worker) {
    const Block block = product.symmetric ? triangle_strip_block(index, block_rows)
                                          : rectangle_strip_block(index, block_rows, block_columns);
    kernel_.run(product, block, workspaces_[worker]);
  });
}

template class MatrixIteration<float>;
template void MatrixIteration<float>::run(const std::vector<Task>&, const float*, float*);
template void MatrixIteration<float>::run(const std::vector<Task>&, const bfloat16*, bfloat16*);
template class MatrixIteration<bfloat16>;
template void MatrixIteration<bfloat16>::run(const std::vector<Task>&, const bfloat16*, bfloat16*);

}  // namespace distforge::newton_schulz
