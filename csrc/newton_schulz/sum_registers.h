// The sums of a block by multiply-adds of registers. Part of blocks_body.h.

constexpr int64_t kPanel = 3 * kLanes;
static_assert(kBlock % kPanel == 0 && kPanel % kRows == 0 && kRows % 4 == 0);

// Words of the summed dimension that are summed in registers, before the sum is added to those
// before it. What the tiles of a block read meanwhile, 200 KB at most, stays in the L2 cache. In
// float32 fewer: the shorter the sums, the smaller the rounding error, for 2% of the time.
template <typename T>
constexpr int64_t kDepth = Panels<T>::kPerWord == 1 ? 64 : 256;
template <typename T>
constexpr int64_t kDepthMultiple = Panels<T>::kPerWord;
constexpr bool kReadsTurned = false;

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

// All of the summed dimension.
template <typename T>
inline void sum_block(const Product<T>& p, Block block, int64_t rows, int64_t columns, float* sums,
                      bool lower) {
  constexpr int64_t kElements = kDepth<T> * Panels<T>::kPerWord;
  for (int64_t k0 = 0; k0 < p.k; k0 += kElements) {
    sum_tiles(p, block, rows, columns, k0, smaller(k0 + kElements, p.k), sums, lower);
  }
}
