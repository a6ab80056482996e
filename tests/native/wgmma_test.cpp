// The Hopper kernel on the host: a twin of wgmma_kernel.cuh made of the same functions. The
// hardware is emulated from the PTX manual: TMA boxes that arrive late and in any order, barriers
// with phases and byte counts, wgmma that reads shared memory by descriptors as late as it may.
// Each warpgroup is a thread, so that a stage filled too early or a wait without end shows. Built
// and run by tests/unit/ops/test_sanitized.py.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "common/bfloat16.h"
#include "common/float16.h"
#include "newton_schulz/store_staged.cuh"
#include "newton_schulz/tile_wgmma.cuh"
#include "program_on_host.h"

namespace {

using namespace distforge;
using namespace distforge::newton_schulz;
using namespace distforge::newton_schulz::wgmma_tile;

constexpr auto kDeadline = std::chrono::seconds(30);

// An mbarrier: a phase ends when nobody is left to arrive and no bytes are left to come.
class Barrier {
 public:
  explicit Barrier(int arrivals) : arrivals_(arrivals), left_(arrivals) {}

  void arrive(int64_t expected_bytes = 0) {
    const std::lock_guard lock(mutex_);
    --left_;
    bytes_ += expected_bytes;
    finish();
  }
  void complete(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    bytes_ -= bytes;
    finish();
  }
  // mbarrier.try_wait.parity until true: the phase of that parity has ended.
  void wait(uint32_t parity) {
    std::unique_lock lock(mutex_);
    if (!ended_.wait_for(lock, kDeadline, [&] { return (phase_ & 1) != parity; })) {
      std::printf("FAILED: a wait without end\n");
      std::fflush(stdout);
      std::_Exit(1);
    }
  }

 private:
  void finish() {
    if (left_ > 0 || bytes_ != 0) return;
    left_ = arrivals_;
    ++phase_;
    ended_.notify_all();
  }

  const int arrivals_;
  int left_;
  int64_t bytes_ = 0;
  uint32_t phase_ = 0;
  std::mutex mutex_;
  std::condition_variable ended_;
};

// Swizzling by 128 bytes: bits 4 to 6 of an address are mixed with bits 7 to 9.
uint32_t swizzle(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

// One tile's shared memory and what is at work on it.
template <typename T>
struct Processor {
  static constexpr uint32_t kBase = 3 * kAlignment;

  Processor(const Task& task, const BufferTable& buffers, int64_t batch, Block block)
      : task(task), buffers(buffers), batch(batch), block(block), copier([this] { copy(); }) {}

  ~Processor() {
    {
      const std::lock_guard lock(mutex);
      ended = true;
    }
    changed.notify_all();
    copier.join();
  }

  uint8_t* at(uint32_t address) { return memory.bytes + (address - kBase); }

  // The unit that copies boxes, in any order and not at once.
  void copy() {
    std::mt19937 random(1);
    for (;;) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [this] { return ended || !copies.empty(); });
      if (copies.empty()) return;
      std::swap(copies[random() % copies.size()], copies.back());
      const auto [side, step] = copies.back();
      copies.pop_back();
      lock.unlock();
      if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(50));
      copy_box(side, step);
      filled[step % kStages].complete(kFactorBytes);
    }
  }

  // A box of 64 elements by 128 rows; what lies beyond the padded row or the rows is zeros.
  void copy_box(int side, int step) {
    const BatchView& view = buffers.view[side == 0 ? task.a : task.bt];
    const int64_t rows = side == 0 ? task.m : task.n;
    const int64_t first = (side == 0 ? block.row : block.column) * kTile;
    const uint32_t to = stage_address(kBase, step) + side * kFactorBytes;
    expect(to % kAlignment == 0, "a swizzled box is aligned", to);
    for (int r = 0; r < kTile; ++r) {
      for (int k = 0; k < kDepth; ++k) {
        const int64_t row = first + r, column = static_cast<int64_t>(step) * kDepth + k;
        T value = T(0.0f);
        if (row < rows && column < view.ld) {
          value = static_cast<const T*>(view.data)[batch * view.stride + row * view.ld + column];
        }
        std::memcpy(at(swizzle(to + r * 128 + k * 2)), &value, sizeof(T));
      }
    }
    holds[step % kStages][side] = step;
  }

  const Task& task;
  const BufferTable& buffers;
  const int64_t batch;
  const Block block;
  struct alignas(64) {
    uint8_t bytes[kStages * kStageBytes];
  } memory;
  Barrier filled[kStages] = {Barrier(1), Barrier(1), Barrier(1)};
  Barrier released[kStages] = {Barrier(kWarps), Barrier(kWarps), Barrier(kWarps)};
  int holds[kStages][2];  // the step that a stage's halves are of

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::pair<int, int>> copies;
  bool ended = false;
  std::thread copier;
};

// What wgmma_tile::run_steps asks for, for the 128 threads of a warpgroup.
template <typename T>
struct HostOperations {
  Processor<T>& on;
  const int group;
  std::deque<int> started = {};
  float d[64][kTile] = {};

  void fill(int step) {
    if (group != 0) return;
    on.filled[step % kStages].arrive(kStageBytes);
    {
      const std::lock_guard lock(on.mutex);
      on.copies.push_back({0, step});
      on.copies.push_back({1, step});
    }
    on.changed.notify_all();
  }
  void wait_until_filled(int step) { on.filled[step % kStages].wait(parity_of(step)); }
  void start_products(int step) { started.push_back(step); }
  template <int kPending>
  void wait_for_products() {
    for (; started.size() > kPending; started.pop_front()) multiply(started.front());
  }
  void release(int step) {
    for (int warp = 0; warp < kGroupThreads / 32; ++warp) on.released[step % kStages].arrive();
  }
  void wait_until_released(int step) {
    if (group == 0) on.released[step % kStages].wait(parity_of(step));
  }

  // Elements of a factor of wgmma, K-major, as PTX's descriptor tells.
  void read(uint64_t descriptor, int rows, float (*to)[kInstructionDepth]) {
    const auto start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
    const auto eight_rows = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
    expect(descriptor >> 62 == 1 && (descriptor >> 49 & 7) == 0, "swizzled by 128, from the base");
    for (int row = 0; row < rows; ++row) {
      for (int k = 0; k < kInstructionDepth; ++k) {
        T value;
        const uint32_t address = start + row / 8 * eight_rows + row % 8 * 128 + k * 2;
        std::memcpy(&value, on.at(swizzle(address)), sizeof(T));
        to[row][k] = static_cast<float>(value);
      }
    }
  }

  void multiply(int step) {
    const uint32_t stage = stage_address(on.kBase, step);
    std::this_thread::yield();
    float a[64][kInstructionDepth], b[kTile][kInstructionDepth];
    for (int part = 0; part < kDepth / kInstructionDepth; ++part) {
      read(a_descriptor(stage, group, part), 64, a);
      read(b_descriptor(stage, part), kTile, b);
      for (int i = 0; i < 64; ++i)
        for (int j = 0; j < kTile; ++j)
          for (int k = 0; k < kInstructionDepth; ++k) d[i][j] += a[i][k] * b[j][k];
    }
    for (const int held : on.holds[step % kStages]) {
      expect(held == step, "a stage is kept until it has been multiplied", step, held);
    }
  }

  // Register i of a thread, in the manual's words: row groupID of its warp's 16 (+ 8 where the
  // second bit of i is set), column 8 (i / 4) + 2 threadID_in_group + (i & 1).
  float sum(int thread, int i) const {
    const int warp = thread / 32, group_id = thread % 32 >> 2, thread_in_group = thread % 4;
    return d[warp * 16 + group_id + ((i & 2) ? 8 : 0)][i / 4 * 8 + thread_in_group * 2 + (i & 1)];
  }
};

template <typename T>
void run_tile_on_host(const Task& task, const BufferTable& buffers, int64_t batch, Block block) {
  Processor<T> processor(task, buffers, batch, block);
  HostOperations<T> groups[kGroups] = {{processor, 0}, {processor, 1}};
  const int count = static_cast<int>(ceil_div(padded_row(task.k), kDepth));
  std::thread second([&] { run_steps(groups[1], count); });
  run_steps(groups[0], count);
  second.join();
  static_assert(staged::kBytes <= sizeof(processor.memory.bytes));
  auto* const results = reinterpret_cast<float*>(processor.memory.bytes);
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int r = 0; r < kSums; ++r) {
      results[sum_row(thread, r) * staged::kPitch + sum_column(thread, r)] =
          groups[thread / kGroupThreads].sum(thread % kGroupThreads, r);
    }
  }
  const TileTarget<T> target(task, buffers, batch, block);
  for (int thread = 0; thread < kThreads; ++thread) {
    staged::store_rows(target, block, thread, results);
  }
  for (int thread = 0; thread < kThreads; ++thread) {
    staged::store_columns(target, block, thread, results);
  }
}

void check_maps() {
  std::set<std::pair<int, int>> sums;
  for (int thread = 0; thread < kThreads; ++thread) {
    for (int r = 0; r < kSums; ++r) {
      sums.insert({sum_row(thread, r), sum_column(thread, r)});
      expect(sum_row(thread, r) / kGroupRows == thread / kGroupThreads, "a row of the warpgroup");
      expect(r % 2 == 0 || sum_column(thread, r) == sum_column(thread, r - 1) + 1, "a pair");
    }
  }
  expect(sums.size() == size_t{kTile} * kTile, "sums of a tile", sums.size());
  // Pairs are stored by half a warp at a time: 32 words in 32 banks.
  for (int thread = 0; thread < kThreads; thread += 16) {
    std::set<int> banks;
    for (int lane = thread; lane < thread + 16; ++lane) {
      for (int r = 0; r < 2; ++r) {
        banks.insert((sum_row(lane, r) * staged::kPitch + sum_column(lane, r)) % 32);
      }
    }
    expect(banks.size() == 32, "banks of the sums", thread, banks.size());
  }
}

}  // namespace

int main(int count, char** words) {
  check_maps();
  std::vector<Shape> shapes = {{1, 1}, {40, 5}, {144, 600}};
  if (all_shapes(count, words)) {
    shapes.insert(shapes.end(), {{5, 40}, {129, 129}, {200, 136}});
  }
  for (const Shape& shape : shapes) {
    check_program<bfloat16>(shape, 6e-2, run_tile_on_host<bfloat16>);
  }
  check_program<float16>({130, 200}, 8e-3, run_tile_on_host<float16>);
  std::printf("%s: %d failed\n", failures == 0 ? "ok" : "FAILED", failures);
  return failures == 0 ? 0 : 1;
}
