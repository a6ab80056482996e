// The sums of a block by AMX, in the place of sum_registers.h: four tiles of 16 x 16 sums at a
// time, from two tiles of A and two of B, 32 of the summed dimension deep. All of that dimension is
// summed in the tiles: to stop every 256 and add to memory, so that B's columns stay in the L1
// cache, was no faster at order 512 and slower from 1024 on. Part of blocks_amx.cpp.

constexpr int kTile = Panels<bfloat16>::kTile;
constexpr int64_t kPanel = 2 * kTile;
static_assert(kBlock % kPanel == 0);

template <typename T>
constexpr int64_t kDepthMultiple = kTile * Panels<T>::kPerWord;
constexpr bool kReadsTurned = true;

// What LDTILECFG reads: eight tiles of 16 rows with 64 bytes each.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);
// Not on the stack: GCC 12 takes it that only the first eight bytes are read.
constexpr TileConfiguration kConfiguration;

// 32 x 32 sums over `steps` times 32.
inline void sum_tiles(const bfloat16* a, const bfloat16* b, int64_t steps, float* sums) {
  constexpr int64_t kStep = 2 * kTile * 2 * kTile;
  constexpr int64_t kRowA = kTile * sizeof(float), kRowB = kPanel * sizeof(float);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, a += kStep, b += kStep) {
    _tile_loadd(4, a, kRowA);
    _tile_loadd(6, b, kRowB);
    _tile_loadd(7, b + 2 * kTile, kRowB);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a + kStep / 2, kRowA);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  constexpr int64_t kSumsRow = kBlock * sizeof(float);
  float* below = sums + kTile * kBlock;
  _tile_stored(0, sums, kSumsRow);
  _tile_stored(1, sums + kTile, kSumsRow);
  _tile_stored(2, below, kSumsRow);
  _tile_stored(3, below + kTile, kSumsRow);
}

// All tiles of a block, or with `lower` those that touch the diagonal or lie below it.
inline void sum_block(const Product<bfloat16>& p, Block block, int64_t rows, int64_t columns,
                      float* sums, bool lower) {
  // The thread's tiles may have been used by others, who reckon in turn with released ones.
  _tile_loadconfig(&kConfiguration);
  for (int64_t j = 0; j < columns; j += kPanel) {
    const bfloat16* b = p.b.at(0, block.column * kBlock + j, kPanel);
    for (int64_t i = lower ? j : 0; i < rows; i += kPanel) {
      const bfloat16* a = p.a.tile(0, block.row * kBlock + i);
      sum_tiles(a, b, ceil_div(p.k, 2 * kTile), sums + i * kBlock + j);
    }
  }
  _tile_release();
}
