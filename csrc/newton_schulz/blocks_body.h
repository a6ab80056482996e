// One block of a product, written once and compiled for each instruction set: the including file
// sets the compiler's target, opens a namespace, and defines kLanes (floats in a register) and,
// unless it has AMX, kRows (rows of a register tile). It is included more than once, hence no
// guard. No function of the standard library is called: the linker keeps one copy of an inline
// function, which could be the one that needs the widest instruction set.

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(float))));

inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

#ifdef DISTFORGE_AMX
#include "newton_schulz/sum_amx.h"
#else
#include "newton_schulz/sum_registers.h"
#endif

// Before another thread is told that the block is there.
inline void finish_streams() {
#ifdef DISTFORGE_STREAM
  _mm_sfence();
#endif
}

#ifdef DISTFORGE_DOT_BFLOAT16
#include "newton_schulz/store_bfloat16.h"
#else
#include "newton_schulz/store_float.h"
#endif

// In double, where no square of a float overflows or vanishes; in sixteen sums, for the compiler's
// vectors and for the precision.
template <typename Element>
double squares(const Element* x, int64_t count) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) {
      const double value = static_cast<float>(x[i + j]);
      sums[j] += value * value;
    }
  }
  for (int64_t j = 0; i < count; ++i, ++j) {
    const double value = static_cast<float>(x[i]);
    sums[j] += value * value;
  }
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return total;
}

// rows x columns of the input, scaled, as the values of a block.
template <typename Element>
void scale_block(const Element* in, int64_t ld, int64_t rows, int64_t columns, double scale,
                 float* values) {
  // A float holds the scale unless the norm is far from 1.
  const float narrow = static_cast<float>(scale);
  const bool fits = scale > 1e-37 && scale < 1e38;
  for (int64_t i = 0; i < rows; ++i, in += ld, values += kBlock) {
    for (int64_t j = 0; fits && j < columns; ++j) values[j] = static_cast<float>(in[j]) * narrow;
    for (int64_t j = 0; !fits && j < columns; ++j) {
      values[j] = static_cast<float>(static_cast<float>(in[j]) * scale);
    }
  }
}

template <typename T>
void run_block(const Product<T>& p, Block block, Workspace& w) {
  const int64_t rows = smaller(kBlock, p.m - block.row * kBlock);
  const int64_t columns = smaller(kBlock, p.n - block.column * kBlock);
  const bool diagonal = p.symmetric && block.row == block.column;
  sum_block(p, block, rows, columns, w.values, diagonal);
  store_block(p, block, rows, columns, diagonal, w);
  if (p.shared) finish_streams();
}

// The values of a block to their place as they are, and across.
template <typename T>
void place_block(Workspace& w, Block block, int64_t rows, int64_t columns, Panels<T> to,
                 Panels<T> turned, bool shared) {
  Product<T> product{};
  product.shared = shared;
  product.c = to;
  product.ct = turned;
  store_block(product, block, rows, columns, false, w);
  if (shared) finish_streams();
}

#include "newton_schulz/small_body.h"

template <typename T>
BlockKernel<T> kernel_named(const char* name) {
  return {kPanel,
          kDepthMultiple<T>,
          kReadsTurned,
          {&squares<float>, &scale_block<float>},
          {&squares<bfloat16>, &scale_block<bfloat16>},
          &run_block<T>,
          &place_block<T>,
          &iterate_small,
          name};
}
