#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "common/bfloat16.h"
#include "newton_schulz/tile_wgmma.cuh"

// How TMA finds the tiles of a buffer.

namespace distforge::newton_schulz {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's function by way of the runtime, so that nothing links with libcuda; null where the
// driver has none.
inline EncodeTiled find_encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<EncodeTiled>(function);
}

// A batch of matrices of `rows` rows, in boxes of kTile rows by wgmma_tile::kDepth elements. What a
// box has beyond the matrix or the padding of its rows arrives as zeros.
template <typename T>
bool make_tensor_map(EncodeTiled encode, const BatchView& view, int64_t rows, int64_t batches,
                     CUtensorMap& map) {
  const CUtensorMapDataType type = std::is_same_v<T, bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const auto unsigned64 = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t sizes[] = {unsigned64(view.ld), unsigned64(rows), unsigned64(batches)};
  // In bytes, of all dimensions but the first; both are multiples of 16 by kRowAlignment.
  const cuuint64_t strides[] = {unsigned64(view.ld) * sizeof(T),
                                unsigned64(view.stride) * sizeof(T)};
  const cuuint32_t box[] = {wgmma_tile::kDepth, kTile, 1}, steps[] = {1, 1, 1};
  return encode(&map, type, 3, view.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace
}  // namespace distforge::newton_schulz
