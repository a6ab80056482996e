#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "common/cuda_stream.h"
#include "newton_schulz/arguments.h"
#include "newton_schulz/launch.h"
#include "newton_schulz/prepare.h"

namespace distforge::newton_schulz {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

ElementType element_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return ElementType::kFloat32;
    case ScalarType::Half:
      return ElementType::kFloat16;
    case ScalarType::BFloat16:
      return ElementType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "x must be float32, float16 or bfloat16");
  }
}

// Places all buffers of the batch one after the other in one allocation, which the caller keeps.
Tensor make_buffers(const Tensor& x, const Arguments& arguments, BufferTable& table) {
  const auto& [schedule, shape, count] = arguments;
  const int64_t n = shape.n(), k = shape.k();
  std::array<int64_t, kNumBuffers> rows{}, columns{};
  rows[kX] = rows[kNextX] = n;
  columns[kX] = columns[kNextX] = k;
  rows[kXt] = rows[kNextXt] = k;
  columns[kXt] = columns[kNextXt] = n;
  for (int64_t i = 0; i < square_buffers(shape); ++i) rows[kSquare + i] = columns[kSquare + i] = n;
  int64_t total = 0;
  for (int i = kX; i < kOut; ++i) total += count * rows[i] * padded_row(columns[i]);
  Tensor scratch = torch::stable::new_empty(x, {total});
  const int64_t element = x.scalar_type() == ScalarType::Float ? 4 : 2;
  auto* next = static_cast<unsigned char*>(scratch.mutable_data_ptr());
  for (int i = kX; i < kOut; ++i) {
    const int64_t ld = padded_row(columns[i]);
    table.view[i] = {next, ld, rows[i] * ld};
    next += count * rows[i] * ld * element;
  }
  return scratch;
}

Tensor newton_schulz_cuda(const Tensor& x, std::vector<double> coefficients) {
  const ElementType type = element_type(x);
  const Arguments arguments = check_and_unpack(x, coefficients);
  Tensor result = torch::stable::empty_like(x);
  if (x.numel() == 0) return result;
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto& [schedule, shape, count] = arguments;
  BufferTable table{};
  const Tensor scratch = make_buffers(x, arguments, table);
  const Tensor parts = torch::stable::new_empty(x, {count * kNormParts}, ScalarType::Double);
  table.view[kOut] = {result.mutable_data_ptr(), shape.columns, shape.rows * shape.columns};
  const LaunchArguments launch{
      ProgramBuilder(shape).build(schedule), table, shape, count, x.const_data_ptr(),
      parts.mutable_data_ptr<double>()};
  const char* error = launch_newton_schulz(launch, type, device, current_cuda_stream(device));
  STD_TORCH_CHECK(error == nullptr, "newton_schulz did not launch: ", error);
  return result;
}

}  // namespace
}  // namespace distforge::newton_schulz

STABLE_TORCH_LIBRARY_IMPL(distforge, CUDA, m) {
  m.impl("newton_schulz", TORCH_BOX(&distforge::newton_schulz::newton_schulz_cuda));
}
