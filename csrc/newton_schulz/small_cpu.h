#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "newton_schulz/blocks.h"

namespace distforge::newton_schulz {

// Matrices for which panels, blocks and a batch of each shape would cost more than the products.
inline bool is_small(const Shape& shape) {
  return shape.n() <= kSmallOrder && shape.k() <= kSmallLength;
}

// The iteration on one small matrix after the other, all of it in double: there the Gram form needs
// neither restarts nor a normalised input, because what rounding leaves in the null space grows by
// less than 1e7 (plan.h) from 1e-16. Scratch is kept from matrix to matrix.
class SmallIteration {
 public:
  explicit SmallIteration(const Schedule& schedule) : schedule_(schedule) {}

  // rows x columns, contiguous; `out` may be `in`.
  template <typename Element>
  void run(const Shape& shape, const Element* in, Element* out) {
    const int64_t n = padded(shape.n()), k = padded(shape.k());
    double* x = cleared(2 * n * k);
    double* xt = x + n * k;
    // The caller's matrix is one of them, by rows.
    double* same = shape.tall() ? xt : x;
    double* turned = shape.tall() ? x : xt;
    const int64_t across = shape.tall() ? n : k, down = shape.tall() ? k : n;
    double squares = 0.0;
    for (int64_t i = 0; i < shape.rows; ++i) {
      for (int64_t j = 0; j < shape.columns; ++j) {
        const double value = static_cast<float>(in[i * shape.columns + j]);
        squares += value * value;
        same[i * across + j] = turned[j * down + i] = value;
      }
    }
    if (!std::isfinite(squares) || squares == 0.0) {
      const float value = squares == 0.0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
      std::fill_n(out, shape.rows * shape.columns, Element(value));
      return;
    }
    float_blocks().iterate_small(schedule_.data(), schedule_.size(), n, k, squares, x, xt);
    const double scale = 1.0 / std::sqrt(squares);
    const int64_t row = shape.tall() ? 1 : k, column = shape.tall() ? k : 1;
    for (int64_t i = 0; i < shape.rows; ++i) {
      for (int64_t j = 0; j < shape.columns; ++j) {
        out[i * shape.columns + j] = Element(static_cast<float>(xt[i * row + j * column] * scale));
      }
    }
  }

 private:
  static int64_t padded(int64_t size) { return ceil_div(size, kSmallPadding) * kSmallPadding; }

  // So many zeros, aligned to the widest vector.
  double* cleared(int64_t count) {
    constexpr size_t kAlignment = 64;
    memory_.assign(count + kAlignment / sizeof(double), 0.0);
    void* begin = memory_.data();
    size_t space = memory_.size() * sizeof(double);
    return static_cast<double*>(std::align(kAlignment, count * sizeof(double), begin, space));
  }

  const Schedule& schedule_;
  std::vector<double> memory_;
};

}  // namespace distforge::newton_schulz
