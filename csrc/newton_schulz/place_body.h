// How a block of float32 values gets to where it belongs. Part of blocks_body.h.

// to[j][i] = from[i][j] by squares of four; both have kBlock columns, and may be read and written
// up to the next multiple of four.
inline void transpose(const float* from, float* to, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += 4) {
    for (int64_t j = 0; j < columns; j += 4) {
      typedef float Four __attribute__((vector_size(16), aligned(4)));
      typedef int32_t Index __attribute__((vector_size(16)));
      const float* f = from + i * kBlock + j;
      float* t = to + j * kBlock + i;
      const Four r0 = *(const Four*)f, r1 = *(const Four*)(f + kBlock);
      const Four r2 = *(const Four*)(f + 2 * kBlock), r3 = *(const Four*)(f + 3 * kBlock);
      const Four low01 = __builtin_shuffle(r0, r1, Index{0, 4, 1, 5});
      const Four high01 = __builtin_shuffle(r0, r1, Index{2, 6, 3, 7});
      const Four low23 = __builtin_shuffle(r2, r3, Index{0, 4, 1, 5});
      const Four high23 = __builtin_shuffle(r2, r3, Index{2, 6, 3, 7});
      *(Four*)t = __builtin_shuffle(low01, low23, Index{0, 1, 4, 5});
      *(Four*)(t + kBlock) = __builtin_shuffle(low01, low23, Index{2, 3, 6, 7});
      *(Four*)(t + 2 * kBlock) = __builtin_shuffle(high01, high23, Index{0, 1, 4, 5});
      *(Four*)(t + 3 * kBlock) = __builtin_shuffle(high01, high23, Index{2, 3, 6, 7});
    }
  }
}

// Copies what lies below the diagonal of a square block to above it.
inline void mirror(float* values, int64_t size) {
  for (int64_t i = 0; i < size; i += 4) {
    transpose(values + i * kBlock, values + i, 4, i);
    for (int64_t r = i; r < i + 4; ++r) {
      for (int64_t s = i; s < r; ++s) values[s * kBlock + r] = values[r * kBlock + s];
    }
  }
}

inline void place_row(const float* values, int64_t columns, float* out) {
  for (int64_t j = 0; j < columns; ++j) out[j] = values[j];
}

inline void place_row(const float* values, int64_t columns, bfloat16* out) {
  for (int64_t j = 0; j < columns; ++j) out[j] = bfloat16(values[j]);
}

inline void place_panels(const float* values, Block block, int64_t rows, int64_t columns,
                         Panels<float> to) {
  for (int64_t j = 0; j < columns; j += kPanel) {
    float* out = to.at(block.row * kBlock, block.column * kBlock + j, kPanel);
    for (int64_t i = 0; i < rows; ++i, out += kPanel) {
      place_row(values + i * kBlock + j, smaller(kPanel, columns - j), out);
    }
  }
}

// Two rows at a time; the second of the last pair may lie beyond the matrix, and is zero.
inline void place_panels(const float* values, Block block, int64_t rows, int64_t columns,
                         Panels<bfloat16> to) {
  for (int64_t j = 0; j < columns; j += kPanel) {
    auto* words =
        reinterpret_cast<uint32_t*>(to.at(block.row * kBlock, block.column * kBlock + j, kPanel));
    const int64_t count = smaller(kPanel, columns - j);
    for (int64_t i = 0; i < rows; i += 2, words += kPanel) {
      const float* first = values + i * kBlock + j;
      const float* second = first + kBlock;
      const uint32_t keep = i + 1 < rows ? 0xffff0000u : 0u;
      for (int64_t q = 0; q < count; ++q) {
        const uint32_t high = static_cast<uint32_t>(bfloat16(second[q]).bits) << 16;
        words[q] = bfloat16(first[q]).bits | (high & keep);
      }
    }
  }
}

template <typename T>
inline void place_rows(const float* values, Block block, int64_t rows, int64_t columns,
                       RowMajor<T> to) {
  T* out = to.data + block.row * kBlock * to.ld + block.column * kBlock;
  for (int64_t i = 0; i < rows; ++i, out += to.ld) place_row(values + i * kBlock, columns, out);
}

template <typename T>
inline void place_out(const Product<T>& p, const float* values, Block block, int64_t rows,
                      int64_t columns) {
  if (p.out_float.data != nullptr) place_rows(values, block, rows, columns, p.out_float);
  if (p.out_bfloat16.data != nullptr) place_rows(values, block, rows, columns, p.out_bfloat16);
}
