// From the float32 sums of a block to bfloat16 panels in one pass over them. Part of
// blocks_avx512_bf16.cpp and blocks_amx.cpp, in the place of blocks_body.h's general way: its
// rounding in integers and its two passes over a block cost a sixth of a product of order 512.

// Words of a row of a block, two neighbours in each: kBlock / 2, in rows that are whole lines.
constexpr int64_t kPackedWords = kBlock / 2;
static_assert(kBlock % 32 == 0 && kPackedWords % 16 == 0);

// Of 16 floats from `column` on, those that are in the matrix.
inline __mmask16 within(int64_t column, int64_t columns) {
  const int64_t left = columns - column;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

inline __m512i round_pair(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// One half of 16 words as floats: the even row of a pair or the odd one.
inline __m512 even_row(__m512i words) { return (__m512)_mm512_slli_epi32(words, 16); }
inline __m512 odd_row(__m512i words) {
  return (__m512)_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}

inline void store_words(uint32_t* to, __m512i words, [[maybe_unused]] bool shared) {
#ifdef DISTFORGE_STREAM
  if (shared) return DISTFORGE_STREAM(reinterpret_cast<float*>(to), words);
#endif
  _mm512_store_si512(to, words);
}

// What 16 columns of two rows become: value = scale sum + d1_scale d1 + d2_scale d2 + identity,
// zero beyond the matrix.
struct RowPair {
  __m512 even, odd;
};

inline void add(RowPair& pair, const Panels<bfloat16>& d, float scale, int64_t row,
                int64_t panel_column, int64_t offset) {
  if (!d) return;
  const __m512i words = _mm512_load_si512(
      reinterpret_cast<const uint32_t*>(d.at(row, panel_column, kPanel)) + offset);
  const __m512 factor = _mm512_set1_ps(scale);
  pair.even = _mm512_fmadd_ps(factor, even_row(words), pair.even);
  pair.odd = _mm512_fmadd_ps(factor, odd_row(words), pair.odd);
}

inline RowPair value_of(const Product<bfloat16>& p, Block block, const float* sums, int64_t i,
                        int64_t j, int64_t rows, int64_t columns) {
  const __m512 scale = _mm512_set1_ps(p.product_scale);
  const float* from = sums + i * kBlock + j;
  RowPair pair{_mm512_mul_ps(scale, _mm512_load_ps(from)),
               _mm512_mul_ps(scale, _mm512_load_ps(from + kBlock))};
  const int64_t offset = j % kPanel, panel_column = block.column * kBlock + j - offset;
  const int64_t row = block.row * kBlock + i;
  add(pair, p.d1, p.d1_scale, row, panel_column, offset);
  add(pair, p.d2, p.d2_scale, row, panel_column, offset);
  if (block.row == block.column && i / 16 == j / 16) {
    const auto bit = static_cast<__mmask16>(1u << (i - j));
    const __m512 identity = _mm512_set1_ps(p.identity);
    pair.even = _mm512_mask_add_ps(pair.even, bit, pair.even, identity);
    pair.odd = _mm512_mask_add_ps(pair.odd, static_cast<__mmask16>(bit << 1), pair.odd, identity);
  }
  const __mmask16 inside = within(j, columns);
  pair.even = _mm512_maskz_mov_ps(inside, pair.even);
  pair.odd = _mm512_maskz_mov_ps(i + 1 < rows ? inside : 0, pair.odd);
  return pair;
}

// Transposes 16 x 16 words in registers.
inline void transpose_words(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 16; i += 8) {
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      t[i + q] = _mm512_shuffle_i32x4(r[i + q], r[i + 4 + q], 0x88);
      t[i + 4 + q] = _mm512_shuffle_i32x4(r[i + q], r[i + 4 + q], 0xdd);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) {
    r[q] = _mm512_shuffle_i32x4(t[q], t[8 + q], 0x88);
    r[8 + q] = _mm512_shuffle_i32x4(t[q], t[8 + q], 0xdd);
  }
}

// Copies what lies below the diagonal of a block of sums to above it.
inline void mirror(float* values) {
  for (int64_t i = 0; i < kBlock; i += 16) {
    for (int64_t j = 0; j <= i; j += 16) {
      __m512i r[16];
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) r[q] = _mm512_load_si512(values + (i + q) * kBlock + j);
      transpose_words(r);
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) {
        const auto above = static_cast<__mmask16>(i == j ? 0xffffu << (q + 1) : 0xffffu);
        _mm512_mask_store_epi32(values + (j + q) * kBlock + i, above, r[q]);
      }
    }
  }
}

// Fills C and, row by row, `packed`: two neighbours of a row in a word.
inline void store_pairs(const Product<bfloat16>& p, Block block, int64_t rows, int64_t columns,
                        const float* sums, uint32_t* packed) {
  // Word q takes halves q and 16 + q.
  const __m512i interleave = _mm512_add_epi32(
      _mm512_set1_epi32(0x00100000),
      _mm512_mullo_epi32(_mm512_set1_epi32(0x00010001),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)));
  for (int64_t i = 0; i < rows; i += 2) {
    uint32_t* row = packed + i * kPackedWords;
    for (int64_t j = 0; j < columns; j += 32) {
      RowPair pair[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const int64_t column = j + 16 * half, offset = column % kPanel;
        pair[half] = value_of(p, block, sums, i, column, rows, columns);
        if (!p.c || column >= columns) continue;
        auto* panel = reinterpret_cast<uint32_t*>(
            p.c.at(block.row * kBlock + i, block.column * kBlock + column - offset, kPanel));
        _mm512_store_si512(
            panel + offset,
            _mm512_permutexvar_epi16(interleave, round_pair(pair[half].even, pair[half].odd)));
      }
      _mm512_store_si512(row + j / 2, round_pair(pair[0].even, pair[1].even));
      _mm512_store_si512(row + kPackedWords + j / 2, round_pair(pair[0].odd, pair[1].odd));
    }
  }
}

// The turned words of C, from the panels that store_pairs filled.
inline void turn_panels(const Panels<bfloat16>& c, Block block, int64_t rows, int64_t columns,
                        bool shared) {
  for (int64_t i = 0; i < rows; i += 32) {
    for (int64_t j = 0; j < columns; j += 16) {
      const int64_t row = block.row * kBlock + i, column = block.column * kBlock + j;
      const int64_t offset = j % kPanel;
      const auto* from = reinterpret_cast<const uint32_t*>(c.at(row, column - offset, kPanel));
      __m512i r[16];
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) r[q] = _mm512_load_si512(from + q * kPanel + offset);
      transpose_words(r);
      auto* to = reinterpret_cast<uint32_t*>(c.tile(row, column));
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) store_words(to + q * 16, r[q], shared);
    }
  }
}

// Two rows of the caller's matrix from 16 words across.
inline void store_turned(RowMajor<bfloat16> out, int64_t row, int64_t column, bool both,
                         __mmask16 inside, __m512i words) {
  bfloat16* to = out.data + row * out.ld + column;
  _mm256_mask_storeu_epi16(to, inside, _mm512_cvtepi32_epi16(words));
  if (!both) return;
  _mm256_mask_storeu_epi16(to + out.ld, inside,
                           _mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16)));
}

// The transpose of a block to panels, to the caller's matrix, or to neither.
inline void store_across(const Product<bfloat16>& p, Block block, int64_t rows, int64_t columns,
                         const uint32_t* packed, Panels<bfloat16> panels, bool turned_out) {
  const int64_t words = ceil_div(columns, 2);
  for (int64_t i = 0; i < rows; i += 16) {
    const int64_t offset = i % kPanel, panel_column = block.row * kBlock + i - offset;
    const __mmask16 inside = within(i, rows);
    for (int64_t w = 0; w < words; w += 16) {
      __m512i r[16];
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) {
        const __mmask16 row_inside = i + q < rows ? 0xffff : 0;
        r[q] = _mm512_maskz_load_epi32(row_inside, packed + (i + q) * kPackedWords + w);
      }
      if (panels.turned != nullptr) {
        auto* to = reinterpret_cast<uint32_t*>(
            panels.tile(block.column * kBlock + 2 * w, block.row * kBlock + i));
#pragma GCC unroll 16
        for (int q = 0; q < 16; ++q) store_words(to + q * 16, r[q], p.shared);
      }
      transpose_words(r);
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) {
        if (w + q >= words) break;
        const int64_t row = block.column * kBlock + 2 * (w + q);
        if (panels) {
          auto* to = reinterpret_cast<uint32_t*>(panels.at(row, panel_column, kPanel));
          store_words(to + offset, r[q], p.shared);
        }
        if (turned_out) {
          store_turned(p.out_bfloat16, row, block.row * kBlock + i, 2 * (w + q) + 1 < columns,
                       inside, r[q]);
        }
      }
    }
  }
}

inline void store_rows(RowMajor<bfloat16> out, Block block, int64_t rows, int64_t columns,
                       const uint32_t* packed) {
  bfloat16* to = out.data + block.row * kBlock * out.ld + block.column * kBlock;
  for (int64_t i = 0; i < rows; ++i, to += out.ld) {
    for (int64_t j = 0; j < columns; j += 32) {
      const int64_t left = columns - j;
      const __mmask32 inside = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
      _mm512_mask_storeu_epi16(to + j, inside,
                               _mm512_load_si512(packed + i * kPackedWords + j / 2));
    }
  }
}

// What becomes of the sums in w.values; below the diagonal only where the block is `diagonal`.
inline void store_block(const Product<bfloat16>& p, Block block, int64_t rows, int64_t columns,
                        bool diagonal, Workspace& w) {
  if (diagonal) mirror(w.values);
  auto* packed = reinterpret_cast<uint32_t*>(w.turned);
  store_pairs(p, block, rows, columns, w.values, packed);
  if (p.c.turned != nullptr) turn_panels(p.c, block, rows, columns, p.shared);
  const bool turned_out = p.out_bfloat16.data != nullptr && p.out_bfloat16.turned;
  if (p.symmetric && !diagonal) store_across(p, block, rows, columns, packed, p.c, false);
  if (p.ct || turned_out) store_across(p, block, rows, columns, packed, p.ct, turned_out);
  if (p.out_bfloat16.data != nullptr && !turned_out) {
    store_rows(p.out_bfloat16, block, rows, columns, packed);
  }
}
