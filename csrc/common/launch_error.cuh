#pragma once

#include <cuda_runtime.h>

namespace distforge {

// What to say of a launch; null where it went well. A failed one is forgotten by the runtime: torch
// would find it at its own next launch, which went well.
inline const char* message_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace distforge
