#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "common/macros.h"
#include "newton_schulz/plan.h"

// The iteration as a list of products. On a CPU the threads walk through it matrix by matrix; on a
// GPU a persistent kernel does for a whole batch, or a launch each runs them. No torch in here.

namespace distforge::newton_schulz {

// Buffers by number, so that a task stays small and a program fits into a kernel's arguments.
enum BufferIndex : uint8_t {
  kNone = 0,
  kX = 1,  // X and its successor, n x k, and their transposes, k x n
  kNextX = 2,
  kXt = 3,
  kNextXt = 4,
  kSquare = 5,  // five n x n
  kOut = 10,    // the caller's matrix, rows x columns
  kNumBuffers = 11,
};

// A matrix whose rows are the columns of another one; a square one is symmetric.
inline uint8_t transpose_of(uint8_t index) {
  switch (index) {
    case kX:
      return kXt;
    case kNextX:
      return kNextXt;
    case kXt:
      return kX;
    case kNextXt:
      return kNextX;
    default:
      return index;
  }
}

// C = product_scale A B + d1_scale D1 + d2_scale D2 + identity I. A is m x k by rows and B is given
// by its transpose, n x k by rows, so that both are read along the summed dimension.
struct Task {
  uint8_t a, bt, d1, d2, c, ct;
  // The caller's matrix takes C (1) or its transpose (2).
  uint8_t out;
  // Only tiles on and below the diagonal are computed, and mirrored.
  uint8_t symmetric;
  int32_t m, n, k;
  float product_scale, d1_scale, d2_scale, identity;
};

// A buffer of a batch: matrix b begins at data + b * stride, rows are ld apart, in elements.
struct BatchView {
  void* data;
  int64_t ld;
  int64_t stride;
};

struct BufferTable {
  BatchView view[kNumBuffers];
};

// Rows of every buffer but the caller's are padded to this many elements, with zeros: a tile reads
// its whole depth without a bounds check, in aligned vectors.
constexpr int64_t kRowAlignment = 32;

DISTFORGE_HOST_DEVICE int64_t padded_row(int64_t columns) {
  return (columns + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
}

// The number of n x n buffers that the form of the iteration needs.
inline int64_t square_buffers(const Shape& shape) { return shape.gram_form() ? 5 : 2; }

class ProgramBuilder {
 public:
  explicit ProgramBuilder(Shape shape)
      : shape_(shape), n_(static_cast<int32_t>(shape.n())), k_(static_cast<int32_t>(shape.k())) {}

  std::vector<Task> build(const Schedule& schedule) {
    shape_.gram_form() ? gram_form(schedule) : direct_form(schedule);
    return std::move(tasks_);
  }

 private:
  static void add(Task& task, float scale, uint8_t d) {
    if (scale == 0.0f) return;
    if (task.d1 == kNone) {
      task.d1 = d;
      task.d1_scale = scale;
    } else {
      task.d2 = d;
      task.d2_scale = scale;
    }
  }

  Task square_task(uint8_t a, uint8_t bt, uint8_t c, int32_t k) const {
    Task task{};
    task.a = a;
    task.bt = bt;
    task.c = c;
    task.symmetric = 1;
    task.m = task.n = n_;
    task.k = k;
    task.product_scale = 1.0f;
    return task;
  }

  void gram(uint8_t out) { tasks_.push_back(square_task(x_, x_, out, k_)); }

  void polynomial(const Step& step, float identity, uint8_t r, uint8_t out) {
    Task task = square_task(r, r, out, n_);
    task.product_scale = step.c;
    task.identity = identity;
    add(task, step.b, r);
    tasks_.push_back(task);
  }

  void symmetric(uint8_t a, uint8_t b, float d1_scale, uint8_t d1, float d2_scale, uint8_t d2,
                 uint8_t out) {
    Task task = square_task(a, b, out, n_);
    add(task, d1_scale, d1);
    add(task, d2_scale, d2);
    tasks_.push_back(task);
  }

  void apply(float x_scale, uint8_t q, bool last) {
    Task task = square_task(q, xt_, last ? uint8_t{kNone} : next_x_, n_);
    task.symmetric = 0;
    task.n = k_;
    add(task, x_scale, x_);
    if (last) {
      task.out = shape_.tall() ? 2 : 1;
    } else {
      task.ct = next_xt_;
    }
    tasks_.push_back(task);
    std::swap(x_, next_x_);
    std::swap(xt_, next_xt_);
  }

  void direct_form(const Schedule& schedule) {
    for (size_t i = 0; i < schedule.size(); ++i) {
      const float z_scale = separate_scale(schedule, i);
      gram(kSquare);
      polynomial(schedule[i], schedule[i].a - z_scale, kSquare, kSquare + 1);
      apply(z_scale, kSquare + 1, i + 1 == schedule.size());
    }
  }

  void gram_form(const Schedule& schedule) {
    uint8_t r = kSquare, t = kSquare + 1, z = kSquare + 2, q = kSquare + 3, next_q = kSquare + 4;
    size_t index = 0;
    for (const int64_t length : gram_segments(schedule)) {
      gram(r);
      float q_scale = 1.0f;
      for (int64_t i = 0; i < length; ++i, ++index) {
        const float z_scale = separate_scale(schedule, index);
        polynomial(schedule[index], schedule[index].a - z_scale, r, z);
        if (i + 1 < length) {
          symmetric(z, r, z_scale, r, 0.0f, r, t);
          symmetric(t, z, z_scale, t, 0.0f, t, r);
        }
        if (i == 0) {
          std::swap(q, z);
        } else {
          symmetric(z, q, z_scale, q, q_scale, z, next_q);
          std::swap(q, next_q);
        }
        q_scale *= z_scale;
      }
      apply(q_scale, q, index == schedule.size());
    }
  }

  Shape shape_;
  int32_t n_, k_;
  uint8_t x_ = kX, next_x_ = kNextX, xt_ = kXt, next_xt_ = kNextXt;
  std::vector<Task> tasks_;
};

}  // namespace distforge::newton_schulz
