// One block of a product, written once and compiled for each instruction set: the including file
// sets the compiler's target, opens a namespace, and defines kLanes (floats in a register) and
// kRows (rows of a register tile). It is included more than once, hence no guard. No function of
// the standard library is called: the linker keeps one copy of an inline function, which could be
// the one that needs the widest instruction set.

constexpr int kVectors = 3;
constexpr int64_t kPanel = kVectors * kLanes;
// Words of the summed dimension that are summed in registers, before the sum is added to those
// before it. What the tiles of a block read meanwhile, 200 KB at most, stays in the L2 cache. In
// float32 fewer: the shorter the sums, the smaller the rounding error, for 2% of the time.
template <typename T>
constexpr int64_t kDepth = Panels<T>::kPerWord == 1 ? 64 : 256;

static_assert(kBlock % kPanel == 0 && kPanel % kRows == 0 && kRows % 4 == 0);

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(float))));

inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }

inline Vector multiply_add(const float*, Vector sum, Words x, Words y) {
  return sum + (Vector)x * (Vector)y;
}

#ifdef DISTFORGE_DOT_BFLOAT16
inline Vector multiply_add(const bfloat16*, Vector sum, Words x, Words y) {
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)y);
}
#endif

// A register tile: kRows x (kTileVectors * kLanes) sums of products of `words` words, to `sums` or
// added to what stands there. Both factors have kPanel words from one to the next.
template <typename T, int kTileVectors>
__attribute__((noinline)) void tile(const uint32_t* a, const uint32_t* b, int64_t words,
                                    float* sums, bool accumulate) {
  Vector acc[kRows][kTileVectors] = {};
  for (int64_t k = 0; k < words; ++k, a += kPanel, b += kPanel) {
    Words row[kTileVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kTileVectors; ++v) {
      row[v] = *reinterpret_cast<const Words*>(b + v * kLanes);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      // A broadcast of bits, not of a float: a pair of bfloat16 may look like any NaN.
      const Words factor = a[i] + Words{};
#pragma GCC unroll 3
      for (int v = 0; v < kTileVectors; ++v) {
        acc[i][v] = multiply_add(static_cast<const T*>(nullptr), acc[i][v], factor, row[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < kTileVectors; ++v) {
      Vector* sum = reinterpret_cast<Vector*>(sums + i * kBlock + v * kLanes);
      *sum = accumulate ? *sum + acc[i][v] : acc[i][v];
    }
  }
}

// All tiles of a block, or those that touch the diagonal or lie below it, over k in [k0, k1).
template <typename T>
inline void sum_tiles(const Product<T>& p, Block block, int64_t rows, int64_t columns, int64_t k0,
                      int64_t k1, float* sums, bool lower) {
  const int64_t words = ceil_div(k1 - k0, Panels<T>::kPerWord);
  for (int64_t j = 0; j < columns; j += kPanel) {
    const T* b = p.b.at(k0, block.column * kBlock + j, kPanel);
    for (int64_t i = 0; i < rows; i += kRows) {
      const int64_t row = block.row * kBlock + i, in_panel = row % kPanel;
      const T* a = p.a.at(k0, row - in_panel, kPanel) + in_panel * Panels<T>::kPerWord;
      int64_t needed = columns - j;
      if (lower) needed = smaller(needed, i + kRows - j);
      if (needed <= 0) continue;
      const auto run = needed > 2 * kLanes ? &tile<T, 3>
                       : needed > kLanes   ? &tile<T, 2>
                                           : &tile<T, 1>;
      run(reinterpret_cast<const uint32_t*>(a), reinterpret_cast<const uint32_t*>(b), words,
          sums + i * kBlock + j, k0 > 0);
    }
  }
}

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
  constexpr int64_t kElements = kDepth<T> * Panels<T>::kPerWord;
  for (int64_t k0 = 0; k0 < p.k; k0 += kElements) {
    sum_tiles(p, block, rows, columns, k0, smaller(k0 + kElements, p.k), w.values, diagonal);
  }
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

template <typename T>
BlockKernel<T> kernel_named(const char* name) {
  return {kPanel,
          {&squares<float>, &scale_block<float>},
          {&squares<bfloat16>, &scale_block<bfloat16>},
          &run_block<T>,
          &place_block<T>,
          name};
}
