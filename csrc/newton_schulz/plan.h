#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace distforge::newton_schulz {

// One step: X <- a X + (b A + c A^2) X with A = X X^T.
struct Step {
  float a, b, c;
};

using Schedule = std::vector<Step>;

// The matrices of one call: `rows` x `columns` as stored, n x k (n <= k) as iterated.
struct Shape {
  int64_t rows, columns;

  bool tall() const { return rows > columns; }
  int64_t n() const { return tall() ? columns : rows; }
  int64_t k() const { return tall() ? rows : columns; }

  // In units of n^3 multiply-adds, five steps cost 15a + 5 by the definition with symmetric
  // products and 6a + 14 by the Gram form (a = k / n). Below 1.5 the gain is not worth the
  // squared condition number.
  bool gram_form() const { return 2 * k() >= 3 * n(); }
};

// A step is X <- (z_scale + Z) X. Early on z_scale = a is large beside Z = b R + c R^2 and is kept
// apart, so that it is not rounded into Z; later they cancel (R is near 1, b + c near -a), and Z
// takes it in before it is rounded. Measured: half the error of either rule alone.
inline float separate_scale(const Schedule& schedule, size_t index) {
  return index < 2 ? schedule[index].a : 0.0f;
}

// The Gram form iterates on R = X X^T alone and forms X <- Q X at the end of a segment, from which
// R is computed anew (the restart of Dao-AILab's gram-newton-schulz). R squares the condition
// number, and each step multiplies what rounding left in the null space by up to a^2: a segment
// ends before that passes kMaxGrowth. Later segments have two steps, because an error of R is
// corrected only by the next restart, and late errors have no time left to shrink. (Measured in
// bfloat16 on Gaussian, ill-conditioned and nearly singular matrices: 3 + 2 is below the error of
// the direct iteration, 2 + 3 is three times above it.)
inline std::vector<int64_t> gram_segments(const Schedule& schedule) {
  constexpr float kMaxGrowth = 256.0f;
  const auto steps = static_cast<int64_t>(schedule.size());
  std::vector<int64_t> segments;
  for (int64_t left = steps; left > 0; left -= segments.back()) {
    const bool first = left == steps;
    const bool three = first && steps >= 3 &&
                       schedule[0].a * schedule[0].a * schedule[1].a * schedule[1].a <= kMaxGrowth;
    segments.push_back(three ? 3 : (left < 2 ? left : 2));
  }
  return segments;
}

}  // namespace distforge::newton_schulz
