#pragma once

#include <cstdint>

#include "common/macros.h"

namespace distforge {

// Storage of a bfloat16; arithmetic is float's. Written as bit operations so that the compiler
// vectorises loops over it.
struct bfloat16 {
  uint16_t bits;

  bfloat16() = default;

  // To nearest, ties to even; a NaN stays one.
  DISTFORGE_HOST_DEVICE explicit bfloat16(float value) {
    const uint32_t wide = __builtin_bit_cast(uint32_t, value);
    const uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    const bool is_nan = (wide & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
  }

  DISTFORGE_HOST_DEVICE explicit operator float() const {
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
  }
};

static_assert(sizeof(bfloat16) == 2);

}  // namespace distforge
