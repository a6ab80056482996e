#pragma once

// The iteration by its definition, in double: what every implementation of it is held against.

#include <cmath>
#include <vector>

#include "newton_schulz/plan.h"

namespace distforge::newton_schulz {

using Dense = std::vector<double>;

// One step in double: X <- a X + (b A + c A^2) X, on an n x k matrix.
inline Dense step_in_double(const Dense& x, int64_t n, int64_t k, const Step& s) {
  Dense gram(n * n), polynomial(n * n), next(n * k);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j)
      for (int64_t q = 0; q < k; ++q) gram[i * n + j] += x[i * k + q] * x[j * k + q];
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double square = 0.0;
      for (int64_t q = 0; q < n; ++q) square += gram[i * n + q] * gram[q * n + j];
      polynomial[i * n + j] = s.b * gram[i * n + j] + s.c * square;
    }
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < k; ++j) {
      double sum = s.a * x[i * k + j];
      for (int64_t q = 0; q < n; ++q) sum += polynomial[i * n + q] * x[q * k + j];
      next[i * k + j] = sum;
    }
  return next;
}

template <typename Element>
Dense iterate_in_double(const Element* in, Shape shape, const Schedule& schedule) {
  const int64_t n = shape.n(), k = shape.k();
  Dense x(n * k);
  double norm = 0.0;
  for (int64_t i = 0; i < n * k; ++i) norm += std::pow(static_cast<float>(in[i]), 2.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < k; ++j)
      x[i * k + j] = static_cast<float>(in[shape.tall() ? j * n + i : i * k + j]) / std::sqrt(norm);
  for (const Step& step : schedule) x = step_in_double(x, n, k, step);
  Dense out(n * k);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < k; ++j) out[shape.tall() ? j * n + i : i * k + j] = x[i * k + j];
  return out;
}

}  // namespace distforge::newton_schulz
