// The iteration on a small matrix, in double (small_cpu.h). Part of blocks_body.h.

typedef double Wide __attribute__((vector_size(kLanes * sizeof(float))));

// c = A^T B, rows x columns: each padded, as is the length of the rows of all three.
inline void multiply_small(const double* a, const double* b, int64_t depth, int64_t rows,
                           int64_t columns, double* c) {
  constexpr int64_t kWide = sizeof(Wide) / sizeof(double);
  for (int64_t i = 0; i < rows; i += kSmallPadding) {
    for (int64_t j = 0; j < columns; j += kWide) {
      Wide sums[kSmallPadding] = {};
      const double *left = a + i, *right = b + j;
      for (int64_t p = 0; p < depth; ++p, left += rows, right += columns) {
        const Wide row = *reinterpret_cast<const Wide*>(right);
#pragma GCC unroll 8
        for (int64_t r = 0; r < kSmallPadding; ++r) sums[r] += left[r] * row;
      }
#pragma GCC unroll 8
      for (int64_t r = 0; r < kSmallPadding; ++r) {
        *reinterpret_cast<Wide*>(c + (i + r) * columns + j) = sums[r];
      }
    }
  }
}

// Q x, n x k, to where the transpose of x was. Q is the product of each step's S = a + b R + c R^2;
// R begins as x x^T with a trace of 1 and becomes S R S. All of these commute and are symmetric.
inline void iterate_small(const Step* steps, int64_t count, int64_t n, int64_t k, double squares,
                          const double* x, double* xt) {
  constexpr int64_t kSize = kSmallOrder * kSmallOrder;
  alignas(64) double r[kSize], s[kSize], t[kSize], products[2][kSize];
  double *q = products[0], *next_q = products[1];
  multiply_small(xt, xt, k, n, n, r);
  for (int64_t i = 0; i < n * n; ++i) r[i] /= squares;
  for (int64_t step = 0; step < count; ++step) {
    const double a = steps[step].a, b = steps[step].b, c = steps[step].c;
    double* polynomial = step == 0 ? q : s;
    multiply_small(r, r, n, n, n, polynomial);
    for (int64_t i = 0; i < n * n; ++i) polynomial[i] = b * r[i] + c * polynomial[i];
    for (int64_t i = 0; i < n; ++i) polynomial[i * n + i] += a;
    if (step > 0) {
      multiply_small(s, q, n, n, n, next_q);
      double* last = q;
      q = next_q, next_q = last;
    }
    if (step + 1 == count) break;
    multiply_small(polynomial, r, n, n, n, t);
    multiply_small(t, polynomial, n, n, n, r);
  }
  multiply_small(q, x, n, n, k, xt);
}
