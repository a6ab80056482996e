#pragma once

#include "newton_schulz/plan.h"
#include "newton_schulz/program.h"

// What crosses from the torch side to newton_schulz.cu. No torch in here.

namespace distforge::newton_schulz {

enum class ElementType { kFloat32, kFloat16, kBFloat16 };

// As many tasks as fit into the 4 KiB of a kernel's arguments beside the buffers.
constexpr int kProgramTasks = 80;

struct Program {
  int count;
  Task tasks[kProgramTasks];
};

static_assert(sizeof(Program) + sizeof(BufferTable) + sizeof(int64_t) <= 4096);

struct LaunchArguments {
  std::vector<Task> tasks;
  BufferTable buffers;
  Shape shape;
  int64_t batches;
  const void* x;
  double* parts;  // kNormParts for each matrix
};

// Starts norm, scaling and all products on the stream; neither allocates nor waits. Returns null,
// or what CUDA complains of.
const char* launch_newton_schulz(const LaunchArguments& arguments, ElementType type, int device,
                                 void* stream);

}  // namespace distforge::newton_schulz
