#pragma once

#include <cstdint>

#include "common/bfloat16.h"
#include "common/macros.h"
#include "newton_schulz/plan.h"

// No torch in here: one description of a product and of its blocks for every instruction set.

namespace distforge::newton_schulz {

// A matrix in panels of `width` columns, as the register tiles read it: a panel holds its rows one
// after the other, bfloat16 in words of two rows that follow each other. Both factors of a product
// are read from this form, and results are written to it, so nothing is ever packed. `rows` is a
// multiple of what the kernel sums at a time; rows and columns beyond the matrix are zeros.
template <typename T>
struct Panels {
  T* data;
  int64_t rows;
  // The same words for the left factor of AMX, which reads them turned: tiles of kTile x kTile
  // words, a row for each column of the panel. Null where the kernel does not read it.
  T* turned = nullptr;

  static constexpr int kPerWord = sizeof(float) / sizeof(T);
  static constexpr int64_t kTile = 16;

  DISTFORGE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
  // The word row that holds `row`, in the panel that begins with `column`.
  DISTFORGE_HOST_DEVICE T* at(int64_t row, int64_t column, int64_t width) const {
    return data + column * rows + row / kPerWord * kPerWord * width;
  }
  // The turned tile whose words begin with `row`, for the columns from `column` on; a panel is two
  // tiles wide, and they follow each other.
  DISTFORGE_HOST_DEVICE T* tile(int64_t row, int64_t column) const {
    constexpr int64_t kSize = kTile * kTile * kPerWord, kWidth = 2 * kTile;
    return turned + column / kWidth * kWidth * rows + row / (kTile * kPerWord) * 2 * kSize +
           column % kWidth / kTile * kSize;
  }
};

// A row-major matrix, or with `turned` its transpose.
template <typename T>
struct RowMajor {
  T* data;
  int64_t ld;
  bool turned;
};

// C = product_scale A B + d1_scale D1 + d2_scale D2 + identity I with float32 accumulation.
template <typename T>
struct Product {
  int64_t m = 0, n = 0, k = 0;
  Panels<T> a = {};  // the transpose of A, k x m; a symmetric A is its own
  Panels<T> b = {};
  float product_scale = 1.0f;
  // Addends, null where there is none. They may not be C itself.
  Panels<T> d1 = {}, d2 = {};
  float d1_scale = 0.0f, d2_scale = 0.0f;
  float identity = 0.0f;
  // Where C is stored, its transpose, and C once more for the caller; null where not wanted.
  Panels<T> c = {}, ct = {};
  RowMajor<float> out_float = {};
  RowMajor<bfloat16> out_bfloat16 = {};
  // Other threads read C, ct and the caller's matrix next, and have read what stood there: a line
  // that two caches hold costs its writer more than the way through memory (measured: four to
  // thirteen times), so that most instruction sets store these past the caches.
  bool shared = false;
  // C is known to be symmetric (m = n): only blocks on and below the diagonal are computed, and
  // mirrored.
  bool symmetric = false;
};

struct Block {
  int64_t row, column;
};

DISTFORGE_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a symmetric product with `size` block rows.
DISTFORGE_HOST_DEVICE int64_t triangle_count(int64_t size) { return size * (size + 1) / 2; }

// The index-th block on or below the diagonal. Those below come first, row by row, and those on
// the diagonal, which cost half, last: the threads end at about the same time.
DISTFORGE_HOST_DEVICE Block triangle_block(int64_t index, int64_t size) {
  const int64_t below = triangle_count(size - 1);
  if (index >= below) return {index - below, index - below};
  int64_t row = 1;
  while (triangle_count(row) <= index) ++row;
  return {row, index - triangle_count(row - 1)};
}

DISTFORGE_HOST_DEVICE Block rectangle_block(int64_t index, int64_t columns) {
  return {index / columns, index % columns};
}

// Blocks are kBlock x kBlock for every instruction set.
constexpr int64_t kBlock = 96;

// A small matrix has so few rows and columns at most, the shorter of them and the longer. It is
// padded with zeros to whole vectors of doubles.
constexpr int64_t kSmallOrder = 24, kSmallLength = 256, kSmallPadding = 8;

// What one thread works with: the values of one block in float32, and their transpose.
struct Workspace {
  alignas(64) float values[kBlock * kBlock];
  alignas(64) float turned[kBlock * kBlock];
};

// How the caller's matrix is read.
template <typename Element>
struct InputKernel {
  double (*squares)(const Element* x, int64_t count);  // their sum
  // Fills values with rows x columns elements, times `scale`.
  void (*scale)(const Element* in, int64_t ld, int64_t rows, int64_t columns, double scale,
                float* values);
};

// How an instruction set computes one block of a product.
template <typename T>
struct BlockKernel {
  int64_t panel_width;
  int64_t depth;      // rows of a panel are a multiple of it
  bool reads_turned;  // the left factor is read from Panels::turned
  InputKernel<float> from_float;
  InputKernel<bfloat16> from_bfloat16;
  void (*run)(const Product<T>& product, Block block, Workspace& workspace);
  // Stores workspace.values, of which rows x columns are valid, as a block of `to`, and its
  // transpose as a block of `turned`; `shared` as in Product.
  void (*place)(Workspace& workspace, Block block, int64_t rows, int64_t columns, Panels<T> to,
                Panels<T> turned, bool shared);
  // The whole iteration on a small matrix (small_body.h), for float.
  void (*iterate_small)(const Step* steps, int64_t count, int64_t n, int64_t k, double squares,
                        const double* x, double* xt);
  const char* name;
};

}  // namespace distforge::newton_schulz
