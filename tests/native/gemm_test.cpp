// The CUDA products on the host: a serial twin of product_kernels.cuh made of the same functions
// (tile maps, copy and fragment offsets, targets of the sums, programs). Threads of a block run one
// after the other between two barriers; mma.sync is emulated from the fragment layout of the PTX
// manual. Built and run by tests/unit/ops/test_sanitized.py, so a read or write out of bounds
// fails.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "common/bfloat16.h"
#include "common/float16.h"
#include "common/tensor_table.cuh"
#include "newton_schulz/tile_float.cuh"
#include "newton_schulz/tile_half.cuh"
#include "program_on_host.h"

namespace {

using namespace distforge;
using namespace distforge::newton_schulz;

template <typename T>
float element_of(uint32_t word, int index) {
  const auto bits = static_cast<uint16_t>(word >> (16 * index));
  return static_cast<float>(__builtin_bit_cast(T, bits));
}

// mma.m16n8k16 of one warp, by its definition: gathers A (16 x 16) and B (16 x 8) from the lanes'
// registers, multiplies, adds to the lanes' sums. In the manual's words: groupID = lane / 4,
// threadID = lane % 4; element i of A is row groupID (+ 8 unless i < 2 or 4 <= i < 6), column
// 2 threadID + (i & 1) (+ 8 for i >= 4); element i of B is row 2 threadID + (i & 1) (+ 8 for i >=
// 2), column groupID; element i of C is row groupID (+ 8 for i >= 2), column 2 threadID + (i & 1).
template <typename T>
void emulate_mma(half_tile::Sums* const* sums, const half_tile::Fragments* fragments, int fi,
                 int fj) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
      const int column = thread * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      a[row][column] = element_of<T>(fragments[lane].a[fi][i / 2], i & 1);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = thread * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      b[row][group] = element_of<T>(fragments[lane].b[fj][i / 2], i & 1);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? group : group + 8, column = thread * 2 + (i & 1);
      float sum = sums[lane]->value[fi][fj][i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      sums[lane]->value[fi][fj][i] = sum;
    }
  }
}

template <typename T>
void copy_stage(const Task& task, const BufferTable& buffers, int64_t batch, Block block, int64_t k,
                uint16_t* stage) {
  using namespace half_tile;
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int side = 0; side < 2; ++side) {
      const uint8_t index = side == 0 ? task.a : task.bt;
      const int64_t rows = side == 0 ? task.m : task.n;
      const T* from = matrix_of<const T>(buffers, index, batch);
      for (int i = 0; i < kCopies; ++i) {
        const Copy copy = copy_at(thread, i);
        const int64_t row = (side == 0 ? block.row : block.column) * kTile + copy.row;
        uint16_t* to = stage + side * kTile * kPitch + shared_offset(copy.row, copy.element);
        expect(reinterpret_cast<uintptr_t>(to) % 16 == reinterpret_cast<uintptr_t>(stage) % 16,
               "a copy into shared memory is aligned", copy.row, copy.element);
        if (row < rows) {
          std::memcpy(to, from + row * buffers.view[index].ld + k + copy.element, 16);
        } else {
          std::memset(to, 0, 16);
        }
      }
    }
  }
}

// The pipeline of run_half_tile: what is copied is there from the barrier of its own step on.
template <typename T>
void half_tile_on_host(const Task& task, const BufferTable& buffers, int64_t batch, Block block) {
  using namespace half_tile;
  std::vector<uint16_t> shared(kStages * kStageElements, 0x7fff);
  std::vector<Sums> sums(kThreads, Sums{});
  const int64_t count = padded_row(task.k) / kDepth;
  for (int stage = 0; stage < kStages - 1 && stage < count; ++stage) {
    copy_stage<T>(task, buffers, batch, block, stage * kDepth,
                  shared.data() + stage * kStageElements);
  }
  for (int64_t step = 0; step < count; ++step) {
    const int64_t next = step + kStages - 1;
    if (next < count) {
      copy_stage<T>(task, buffers, batch, block, next * kDepth,
                    shared.data() + next % kStages * kStageElements);
    }
    const uint16_t* a = shared.data() + step % kStages * kStageElements;
    for (int k = 0; k < kDepth; k += 16) {
      for (int warp = 0; warp < kThreads / 32; ++warp) {
        Fragments fragments[32];
        Sums* lanes[32];
        for (int lane = 0; lane < 32; ++lane) {
          load_fragments(a, a + kTile * kPitch, warp * 32 + lane, k, fragments[lane]);
          lanes[lane] = &sums[warp * 32 + lane];
        }
        for (int i = 0; i < kRowFragments; ++i) {
          for (int j = 0; j < kColumnFragments; ++j) emulate_mma<T>(lanes, fragments, i, j);
        }
      }
    }
  }
  const TileTarget<T> target(task, buffers, batch, block);
  for (int thread = 0; thread < kThreads; ++thread) {
    store_sums(target, block, thread, sums[thread]);
  }
}

void float_tile_on_host(const Task& task, const BufferTable& buffers, int64_t batch, Block block) {
  using namespace float_tile;
  std::vector<float> shared(kStages * kStageElements, NAN);
  std::vector<Sums> sums(kThreads, Sums{});
  const int64_t count = padded_row(task.k) / kDepth;
  for (int64_t step = 0; step < count; ++step) {
    float* stage = shared.data() + step % kStages * kStageElements;
    for (int thread = 0; thread < kThreads; ++thread) {
      for (int side = 0; side < 2; ++side) {
        const uint8_t index = side == 0 ? task.a : task.bt;
        const int64_t rows = side == 0 ? task.m : task.n;
        const float* from = matrix_of<const float>(buffers, index, batch);
        for (int i = 0; i < kCopies; ++i) {
          const Copy copy = copy_at(thread, i);
          const int64_t row = (side == 0 ? block.row : block.column) * kTile + copy.row;
          for (int q = 0; q < kVector; ++q) {
            const int64_t at = row * buffers.view[index].ld + step * kDepth + copy.element + q;
            stage[side * kDepth * kPitch + shared_offset(copy.element + q, copy.row)] =
                row < rows ? from[at] : 0.0f;
          }
        }
      }
    }
    for (int thread = 0; thread < kThreads; ++thread) {
      multiply(stage, stage + kDepth * kPitch, thread, sums[thread]);
    }
  }
  const TileTarget<float> target(task, buffers, batch, block);
  for (int thread = 0; thread < kThreads; ++thread) {
    store_sums(target, block, thread, sums[thread]);
  }
}

template <typename T>
void run_tile_on_host(const Task& task, const BufferTable& buffers, int64_t batch, Block block) {
  if constexpr (std::is_same_v<T, float>) {
    float_tile_on_host(task, buffers, batch, block);
  } else {
    half_tile_on_host<T>(task, buffers, batch, block);
  }
}

// Each element of a stage is copied once, and each product of a tile belongs to one sum.
void check_maps() {
  std::set<std::pair<int, int>> half_copies, half_sums, float_copies, float_sums, scale_elements;
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int i = 0; i < half_tile::kCopies; ++i) {
      const auto copy = half_tile::copy_at(thread, i);
      half_copies.insert({copy.row, copy.element});
      expect(copy.row < kTile && copy.element + 8 <= half_tile::kDepth, "a copy in the stage");
    }
    for (int i = 0; i < float_tile::kCopies; ++i) {
      const auto copy = float_tile::copy_at(thread, i);
      float_copies.insert({copy.row, copy.element});
      expect(copy.row < kTile && copy.element + 4 <= float_tile::kDepth, "a copy in the stage");
    }
    const int warp = thread / 32, lane = thread % 32;
    for (int i = 0; i < half_tile::kRowFragments; ++i)
      for (int j = 0; j < half_tile::kColumnFragments; ++j)
        for (int r = 0; r < 4; ++r)
          half_sums.insert(
              {half_tile::sum_row(warp, lane, i, r), half_tile::sum_column(warp, lane, j, r)});
    for (int i = 0; i < float_tile::kSide; ++i)
      for (int j = 0; j < float_tile::kSide; ++j)
        float_sums.insert({float_tile::row_of(thread, i), float_tile::column_of(thread, j)});
    for (int i = 0; i < kScaleTile / 8; ++i)
      scale_elements.insert({scale_row(thread, i), scale_column(thread)});
  }
  const size_t tile = static_cast<size_t>(kTile) * kTile;
  expect(half_copies.size() == size_t{kTile} * half_tile::kDepth / 8, "copies of a half stage");
  expect(float_copies.size() == size_t{kTile} * float_tile::kDepth / 4, "copies of a float stage");
  expect(half_sums.size() == tile, "sums of a half tile", half_sums.size());
  expect(float_sums.size() == tile, "sums of a float tile", float_sums.size());
  expect(scale_elements.size() == size_t{kScaleTile} * kScaleTile, "elements of a scale tile");
}

// The 32 lanes of a warp read their words from 32 different banks of shared memory.
void check_banks() {
  using namespace half_tile;
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    for (int word = 0; word < 4; ++word) {
      std::set<int> a, b;
      for (int lane = 0; lane < 32; ++lane) {
        a.insert(a_offset(warp, lane, 1, word, 16) / 2 % 32);
        b.insert(b_offset(warp, lane, 1, word % 2, 16) / 2 % 32);
        expect(a_offset(warp, lane, 1, word, 16) % 2 == 0, "a word is aligned");
      }
      expect(a.size() == 32 && b.size() == 32, "banks", warp, word);
    }
  }
}

void check_tiles() {
  for (int32_t m = 1; m <= 3000; m += 41) {
    Task task{};
    task.m = task.n = m;
    for (const uint8_t symmetric : {0, 1}) {
      task.symmetric = symmetric;
      std::set<std::pair<int64_t, int64_t>> seen;
      for (int64_t i = 0; i < tile_count(task); ++i) {
        const Block block = tile_at(task, i);
        expect(block.row * kTile < m && block.column * kTile < m, "a tile in the matrix", m, i);
        expect(!symmetric || block.column <= block.row, "a tile of the triangle", m, i);
        seen.insert({block.row, block.column});
      }
      const int64_t size = ceil_div(m, kTile);
      const int64_t wanted = symmetric ? size * (size + 1) / 2 : size * size;
      expect(static_cast<int64_t>(seen.size()) == wanted, "all tiles once", m, symmetric);
    }
  }
}

// A chunk of a kernel that serves a list belongs to one tensor, and all chunks cover it.
struct Sized {
  int64_t numel;
};

void check_table() {
  using Table = TensorTable<Sized, 5>;
  auto table = std::make_unique<Table>();
  table->clear();
  const int64_t sizes[] = {1, 0, Table::kChunk, Table::kChunk + 1, 3 * Table::kChunk - 7, 5};
  for (const int64_t size : sizes) expect(table->push({size}), "room for a tensor", size);
  expect(!table->push({1}) && table->push({0}), "a full table says so");
  std::vector<int64_t> covered(5, 0);
  for (int32_t chunk = 0; chunk < table->chunks(); ++chunk) {
    const int tensor = table->tensor_of(chunk);
    const int64_t begin = table->begin_of(tensor, chunk), end = table->end_of(tensor, chunk);
    expect(begin == covered[tensor] && end > begin && begin % 4 == 0, "chunks follow", chunk);
    covered[tensor] = end;
  }
  int position = 0;
  for (const int64_t size : sizes) {
    if (size > 0) expect(covered[position] == size, "a tensor is covered", position);
    if (size > 0) ++position;
  }
  Table large;
  large.clear();
  expect(!large.push({int64_t{1} << 46}), "more chunks than a grid has");
}

void check_norm() {
  double parts[kNormParts] = {};
  expect(inverse_norm(parts) == 0.0, "zeros");
  parts[3] = INFINITY;
  expect(std::isnan(inverse_norm(parts)), "infinity");
  parts[3] = NAN;
  expect(std::isnan(inverse_norm(parts)), "NaN");
  for (const double scale : {1e-44, 1e-30, 1.0, 1e30, 3e38}) {
    // A denormal float is not the number that was written.
    const auto x = static_cast<float>(scale);
    parts[3] = static_cast<double>(x) * x;
    const float value = scaled(x, inverse_norm(parts));
    expect(std::fabs(value - 1.0f) < 1e-6f, "scaled by its norm", std::lround(std::log10(scale)));
  }
}

void check_types(Shape shape, bool with_float, bool with_bfloat16, bool with_float16) {
  if (with_float) check_program<float>(shape, 2e-5, run_tile_on_host<float>);
  if (with_bfloat16) check_program<bfloat16>(shape, 6e-2, run_tile_on_host<bfloat16>);
  if (with_float16) check_program<float16>(shape, 8e-3, run_tile_on_host<float16>);
}

}  // namespace

int main(int count, char** words) {
  check_maps();
  check_banks();
  check_tiles();
  check_table();
  check_norm();
  for (const Shape& shape : {Shape{1, 1}, Shape{5, 40}, Shape{40, 5}, Shape{33, 33}}) {
    check_types(shape, true, true, true);
  }
  // Of more than one tile.
  const bool all = all_shapes(count, words);
  check_types({200, 131}, true, all, all);
  check_types({129, 129}, all, true, all);
  check_types({130, 200}, all, all, true);
  std::printf("%s: %d failed\n", failures == 0 ? "ok" : "FAILED", failures);
  return failures == 0 ? 0 : 1;
}
