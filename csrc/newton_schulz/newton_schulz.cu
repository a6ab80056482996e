#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "common/launch_error.cuh"
#include "newton_schulz/launch.h"
#include "newton_schulz/prepare_kernels.cuh"
#include "newton_schulz/product_kernels.cuh"
#include "newton_schulz/tensor_map.cuh"
#include "newton_schulz/wgmma_kernel.cuh"

namespace distforge::newton_schulz {
namespace {

constexpr int64_t kMaxGridY = 65535;

unsigned grid_of(int64_t count) { return static_cast<unsigned>(std::min(count, kMaxGridY)); }

// Blocks of the persistent kernel that run at once, or 0 where it cannot be launched.
template <typename T>
int resident_blocks(int device) {
  int cooperative = 0, processors = 0, blocks = 0;
  if (cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, persistent_kernel<T>, kThreads,
                                                    kSharedBytesOf<T>) != cudaSuccess) {
    return 0;
  }
  return cooperative ? processors * blocks : 0;
}

// What makes tensor maps where the device has wgmma and TMA, null elsewhere.
EncodeTiled hopper_encoder(int device) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
      major != 9 || minor != 0) {
    return nullptr;
  }
  static const EncodeTiled encode = find_encode_tiled();
  return encode;
}

template <typename T>
cudaError_t run_on_hopper(EncodeTiled encode, const std::vector<Task>& tasks,
                          const BufferTable& buffers, int64_t batches, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(
      wgmma_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, wgmma_tile::kSharedBytes);
  if (error != cudaSuccess) return error;
  for (const Task& task : tasks) {
    CUtensorMap a, bt;
    if (!make_tensor_map<T>(encode, buffers.view[task.a], task.m, batches, a) ||
        !make_tensor_map<T>(encode, buffers.view[task.bt], task.n, batches, bt)) {
      return cudaErrorInvalidValue;
    }
    const auto blocks = static_cast<unsigned>(tile_count(task) * batches);
    wgmma_kernel<T><<<blocks, kThreads, wgmma_tile::kSharedBytes, stream>>>(a, bt, task, buffers);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t run_program(const std::vector<Task>& tasks, const BufferTable& buffers, Shape shape,
                        int64_t batches, int device, cudaStream_t stream) {
  // Where a launch costs as much as a product, and only there: large products fill the GPU alone.
  constexpr int64_t kPersistentOrder = 512;
  const bool small = shape.n() <= kPersistentOrder;
  if constexpr (!std::is_same_v<T, float>) {
    const EncodeTiled encode = small ? nullptr : hopper_encoder(device);
    if (encode) return run_on_hopper<T>(encode, tasks, buffers, batches, stream);
  }
  const int blocks = small ? resident_blocks<T>(device) : 0;
  if (blocks == 0) {
    for (const Task& task : tasks) {
      const dim3 grid(static_cast<unsigned>(tile_count(task)), grid_of(batches));
      product_kernel<T><<<grid, kThreads, kSharedBytesOf<T>, stream>>>(task, buffers, batches);
    }
    return cudaGetLastError();
  }
  for (size_t begin = 0; begin < tasks.size(); begin += kProgramTasks) {
    Program program{};
    program.count = static_cast<int>(std::min<size_t>(kProgramTasks, tasks.size() - begin));
    std::copy_n(tasks.begin() + begin, program.count, program.tasks);
    void* arguments[] = {&program, const_cast<BufferTable*>(&buffers), &batches};
    const cudaError_t error = cudaLaunchCooperativeKernel(
        persistent_kernel<T>, dim3(blocks), dim3(kThreads), arguments, kSharedBytesOf<T>, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t launch(const LaunchArguments& arguments, int device, cudaStream_t stream) {
  const auto& [tasks, buffers, shape, batches, x, parts] = arguments;
  for (const void* kernel : {reinterpret_cast<const void*>(&product_kernel<T>),
                             reinterpret_cast<const void*>(&persistent_kernel<T>)}) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytesOf<T>);
    if (error != cudaSuccess) return error;
  }
  const T* input = static_cast<const T*>(x);
  norm_kernel<T><<<dim3(kNormParts, grid_of(batches)), kNormThreads, 0, stream>>>(
      input, shape.rows * shape.columns, parts, batches);
  // Over the padding too: what a row has beyond the matrix must be zeros.
  const dim3 grid(static_cast<unsigned>(ceil_div(padded_row(shape.columns), kScaleTile)),
                  static_cast<unsigned>(ceil_div(padded_row(shape.rows), kScaleTile)),
                  grid_of(batches));
  scale_kernel<T><<<grid, kScaleThreads, 0, stream>>>(input, shape, parts, buffers, batches);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return run_program<T>(tasks, buffers, shape, batches, device, stream);
}

}  // namespace

const char* launch_newton_schulz(const LaunchArguments& arguments, ElementType type, int device,
                                 void* stream) {
  auto* const cuda_stream = static_cast<cudaStream_t>(stream);
  cudaError_t error = cudaErrorInvalidValue;
  switch (type) {
    case ElementType::kFloat32:
      error = launch<float>(arguments, device, cuda_stream);
      break;
    case ElementType::kFloat16:
      error = launch<float16>(arguments, device, cuda_stream);
      break;
    case ElementType::kBFloat16:
      error = launch<bfloat16>(arguments, device, cuda_stream);
      break;
  }
  return message_of(error);
}

}  // namespace distforge::newton_schulz
