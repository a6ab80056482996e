#pragma once

#include "newton_schulz/product.h"
#include "newton_schulz/program.h"

// One tile of a product, in pieces that a thread runs between two barriers. Each piece is a host
// function too: tests/native/gemm_test.cpp runs all threads of a block one after the other and
// emulates the tensor core by the fragment layout of the PTX manual, so that what remains unproven
// without a GPU are the instructions themselves.

namespace distforge::newton_schulz {

constexpr int kTile = 128;  // rows and columns of a tile
constexpr int kThreads = 256;

// Where a tile stands: for symmetric tasks on or below the diagonal.
DISTFORGE_HOST_DEVICE int64_t tile_count(const Task& task) {
  const int64_t rows = ceil_div(task.m, kTile), columns = ceil_div(task.n, kTile);
  return task.symmetric ? triangle_count(rows) : rows * columns;
}

DISTFORGE_HOST_DEVICE Block tile_at(const Task& task, int64_t index) {
  if (task.symmetric) return triangle_block(index, ceil_div(task.m, kTile));
  return rectangle_block(index, ceil_div(task.n, kTile));
}

template <typename T>
DISTFORGE_HOST_DEVICE T* matrix_of(const BufferTable& buffers, uint8_t index, int64_t batch) {
  const BatchView& view = buffers.view[index];
  return static_cast<T*>(view.data) + batch * view.stride;
}

// What becomes of one sum. Elements beyond the matrix are stored as far as the padding of the row
// goes: they are zeros, because the rows of A and B beyond it were read as zeros.
template <typename T>
struct TileTarget {
  const Task& task;
  const T *d1, *d2;
  T *c, *ct, *mirrored, *out;
  int64_t ldd1, ldd2, ldc, ldct, ldout;
  bool diagonal;

  DISTFORGE_HOST_DEVICE TileTarget(const Task& t, const BufferTable& buffers, int64_t batch,
                                   Block block)
      : task(t) {
    d1 = t.d1 ? matrix_of<T>(buffers, t.d1, batch) : nullptr;
    d2 = t.d2 ? matrix_of<T>(buffers, t.d2, batch) : nullptr;
    c = t.c ? matrix_of<T>(buffers, t.c, batch) : nullptr;
    ct = t.ct ? matrix_of<T>(buffers, t.ct, batch) : nullptr;
    out = t.out ? matrix_of<T>(buffers, kOut, batch) : nullptr;
    diagonal = t.symmetric && block.row == block.column;
    mirrored = t.symmetric && !diagonal ? c : nullptr;
    ldd1 = buffers.view[t.d1].ld;
    ldd2 = buffers.view[t.d2].ld;
    ldc = buffers.view[t.c].ld;
    ldct = t.ct ? buffers.view[t.ct].ld : ldc;
    ldout = buffers.view[kOut].ld;
  }

  DISTFORGE_HOST_DEVICE void store(int64_t row, int64_t column, float sum) const {
    const bool in_rows = row < task.m, in_columns = column < task.n;
    float value = 0.0f;
    if (in_rows && in_columns) {
      value = task.product_scale * sum;
      if (d1) value += task.d1_scale * static_cast<float>(d1[row * ldd1 + column]);
      if (d2) value += task.d2_scale * static_cast<float>(d2[row * ldd2 + column]);
      if (row == column) value += task.identity;
      if (out) out[task.out == 2 ? column * ldout + row : row * ldout + column] = T(value);
    }
    if (c && in_rows && column < ldc) c[row * ldc + column] = T(value);
    if (mirrored && in_columns && row < ldc) mirrored[column * ldc + row] = T(value);
    if (ct && in_columns && row < ldct) ct[column * ldct + row] = T(value);
  }
};

}  // namespace distforge::newton_schulz
