#pragma once

#include <cstdint>
#include <type_traits>

#include "common/macros.h"

// No torch in here: nvcc parses this once for each architecture.

namespace distforge::grokfast {

// The scalars of one step, in the precision of the buffers. The complements are taken in double
// first: 1 - 0.999f would already be wrong in the fifth digit.
struct Coefficients {
  float alpha;
  float one_minus_alpha;
  float lamb;
  float beta;
  float one_minus_beta;
};

inline Coefficients make_coefficients(double alpha, double lamb, double beta) {
  return {static_cast<float>(alpha), static_cast<float>(1.0 - alpha), static_cast<float>(lamb),
          static_cast<float>(beta), static_cast<float>(1.0 - beta)};
}

// One element: filters the gradient (Grokfast, arXiv 2405.20233, algorithm 2), updates the
// momentum, returns the update. `h` is left alone when there is no EMA buffer.
template <bool kHasEma, bool kNesterov>
DISTFORGE_HOST_DEVICE float step(const Coefficients& c, float g, float& h, float& m) {
  float filtered = g;
  if constexpr (kHasEma) {
    h = c.alpha * h + c.one_minus_alpha * g;
    filtered = g + c.lamb * h;
  }
  m = c.beta * m + c.one_minus_beta * filtered;
  if constexpr (kNesterov) {
    return c.one_minus_beta * filtered + c.beta * m;
  } else {
    return m;
  }
}

// The buffers of one tensor, checked. `ema` is null where there is no EMA buffer. Update is the
// type that Newton-Schulz reads.
template <typename Update>
struct Buffers {
  const float* grad;
  float* ema;
  float* momentum;
  Update* update;
  int64_t numel;
};

// Calls `launch` with the two choices as compile-time constants.
template <typename Launch>
void dispatch(bool has_ema, bool nesterov, const Launch& launch) {
  using std::bool_constant;
  if (has_ema) {
    nesterov ? launch(bool_constant<true>{}, bool_constant<true>{})
             : launch(bool_constant<true>{}, bool_constant<false>{});
  } else {
    nesterov ? launch(bool_constant<false>{}, bool_constant<true>{})
             : launch(bool_constant<false>{}, bool_constant<false>{});
  }
}

}  // namespace distforge::grokfast
