#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

// Exported by libtorch_cuda alone. The weak reference lets the same extension load on a CPU-only
// torch, where no CUDA tensor exists that could reach a launch.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace distforge {

// The stream as the pointer that it is (a cudaStream_t), so that no CUDA header is needed.
inline void* current_cuda_stream(int32_t device_index) {
  STD_TORCH_CHECK(&aoti_torch_get_current_cuda_stream != nullptr,
                  "this torch does not export its CUDA stream");
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream) == AOTI_TORCH_SUCCESS,
                  "torch did not give its current CUDA stream");
  return stream;
}

}  // namespace distforge
