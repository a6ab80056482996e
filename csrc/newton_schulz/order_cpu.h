#pragma once

#include <algorithm>
#include <cstdint>

#include "newton_schulz/product.h"

// In which order the blocks of a product are computed on a CPU.

namespace distforge::newton_schulz {

// So many block columns are gone through, row by row, before the next ones begin: what they read of
// the right factor stays in the L2 cache meanwhile, and the left factor comes from memory once a
// strip, where otherwise the right one came once a row. Measured with AMX, order 1024: 11% of the
// time.
constexpr int64_t kStrip = 4;

inline Block rectangle_strip_block(int64_t index, int64_t rows, int64_t columns) {
  const int64_t first = index / (rows * kStrip) * kStrip;
  const int64_t width = std::min(kStrip, columns - first), inside = index - first * rows;
  return {inside / width, first + inside % width};
}

// The index-th of triangle_count(size) blocks on or below the diagonal; as in triangle_block, those
// on it are the last.
inline Block triangle_strip_block(int64_t index, int64_t size) {
  const int64_t below = triangle_count(size - 1);
  if (index >= below) return {index - below, index - below};
  for (int64_t first = 0;; first += kStrip) {
    for (int64_t row = first + 1; row < size; ++row) {
      const int64_t width = std::min(kStrip, row - first);
      if (index < width) return {row, first + index};
      index -= width;
    }
  }
}

}  // namespace distforge::newton_schulz
