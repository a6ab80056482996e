// From the sums of a block to float32 panels. Part of blocks_body.h.

// values[i][j] += scale d[i][j] for one row of one panel.
inline void add_row(const float* d, int64_t columns, float scale, float* values) {
  for (int64_t j = 0; j < columns; ++j) values[j] += scale * d[j];
}

// The values of a block from its sums: only what `lower` leaves is meaningful.
inline void finish(const Product<float>& p, Block block, int64_t rows, int64_t columns, bool lower,
                   float* values) {
  for (int64_t i = 0; i < rows; ++i, values += kBlock) {
    const int64_t row = block.row * kBlock + i;
    const int64_t end = lower ? i + 1 : columns;
    for (int64_t j = 0; j < end; ++j) values[j] *= p.product_scale;
    for (int64_t j = 0; j < end; j += kPanel) {
      const int64_t column = block.column * kBlock + j, count = smaller(kPanel, end - j);
      if (p.d1) add_row(p.d1.at(row, column, kPanel), count, p.d1_scale, values + j);
      if (p.d2) add_row(p.d2.at(row, column, kPanel), count, p.d2_scale, values + j);
    }
    if (block.row == block.column) values[i] += p.identity;
  }
}

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
                         Panels<float> to, [[maybe_unused]] bool shared) {
  for (int64_t j = 0; j < columns; j += kPanel) {
    float* out = to.at(block.row * kBlock, block.column * kBlock + j, kPanel);
    for (int64_t i = 0; i < rows; ++i, out += kPanel) {
      const float* from = values + i * kBlock + j;
#ifdef DISTFORGE_STREAM
      if (shared && columns - j >= kPanel) {
        for (int64_t q = 0; q < kPanel; q += kLanes) {
          DISTFORGE_STREAM(out + q, *reinterpret_cast<const Vector*>(from + q));
        }
        continue;
      }
#endif
      place_row(from, smaller(kPanel, columns - j), out);
    }
  }
}

template <typename T>
inline void place_rows(const float* values, Block block, int64_t rows, int64_t columns,
                       RowMajor<T> to) {
  T* out = to.data + block.row * kBlock * to.ld + block.column * kBlock;
  for (int64_t i = 0; i < rows; ++i, out += to.ld) place_row(values + i * kBlock, columns, out);
}

inline void place_out(const Product<float>& p, const float* values, Block block, int64_t rows,
                      int64_t columns) {
  if (p.out_float.data != nullptr) place_rows(values, block, rows, columns, p.out_float);
  if (p.out_bfloat16.data != nullptr) place_rows(values, block, rows, columns, p.out_bfloat16);
}

// What becomes of the sums in w.values; below the diagonal only where the block is `diagonal`.
inline void store_block(const Product<float>& p, Block block, int64_t rows, int64_t columns,
                        bool diagonal, Workspace& w) {
  finish(p, block, rows, columns, diagonal, w.values);
  if (diagonal) mirror(w.values, rows);
  if (p.c) place_panels(w.values, block, rows, columns, p.c, p.shared);
  const bool mirrored = p.symmetric && !diagonal;
  const bool turned_out = p.out_float.turned || p.out_bfloat16.turned;
  if (mirrored || p.ct || turned_out) {
    transpose(w.values, w.turned, rows, columns);
    const Block across{block.column, block.row};
    if (mirrored) place_panels(w.turned, across, columns, rows, p.c, p.shared);
    if (p.ct) place_panels(w.turned, across, columns, rows, p.ct, p.shared);
    if (turned_out) place_out(p, w.turned, across, columns, rows);
  }
  if (!turned_out) place_out(p, w.values, block, rows, columns);
}
