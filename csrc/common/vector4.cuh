#pragma once

#include <cstdint>

#include "common/bfloat16.h"
#include "common/float16.h"

namespace distforge {

// Four neighbouring elements, moved by one instruction.
template <typename T>
struct alignas(4 * sizeof(T)) Vector4 {
  T element[4];
};

template <typename T>
DISTFORGE_HOST_DEVICE bool aligned_for_vector4(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (4 * sizeof(T)) == 0;
}

}  // namespace distforge
