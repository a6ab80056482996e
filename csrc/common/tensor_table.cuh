#pragma once

#include <cstddef>
#include <cstdint>

#include "common/macros.h"

namespace distforge {

// A list of tensors as the argument of a kernel: block after block takes the next `kChunk` elements
// of the next tensor, so that one launch serves all of them. Item needs `numel`.
template <typename Item, int kCapacity>
struct TensorTable {
  static constexpr int64_t kChunk = 16384;

  int count;
  Item items[kCapacity];
  // first_chunk[i] is the number of chunks before tensor i; one past the last is the total.
  int32_t first_chunk[kCapacity + 1];

  void clear() {
    count = 0;
    first_chunk[0] = 0;
  }

  // False when the table is full; an empty tensor takes no place.
  bool push(const Item& item) {
    if (item.numel == 0) return true;
    const int64_t chunks = (item.numel + kChunk - 1) / kChunk;
    const int64_t end = first_chunk[count] + chunks;
    if (count == kCapacity || end > INT32_MAX) return false;
    items[count++] = item;
    first_chunk[count] = static_cast<int32_t>(end);
    return true;
  }

  int32_t chunks() const { return first_chunk[count]; }

  // The tensor that holds a chunk, by bisection.
  DISTFORGE_HOST_DEVICE int tensor_of(int32_t chunk) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (first_chunk[middle] <= chunk) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // The elements [begin, end) of that tensor which the chunk covers.
  DISTFORGE_HOST_DEVICE int64_t begin_of(int tensor, int32_t chunk) const {
    return static_cast<int64_t>(chunk - first_chunk[tensor]) * kChunk;
  }
  DISTFORGE_HOST_DEVICE int64_t end_of(int tensor, int32_t chunk) const {
    const int64_t end = begin_of(tensor, chunk) + kChunk;
    return end < items[tensor].numel ? end : items[tensor].numel;
  }
};

// Calls launch(table) for a whole list, with as many tables as it fills.
template <typename Item, int kCapacity, typename Launch>
void for_each_table(const Item* all, size_t count, const Launch& launch) {
  TensorTable<Item, kCapacity> table;
  table.clear();
  for (size_t i = 0; i < count; ++i) {
    if (table.push(all[i])) continue;
    launch(table);
    table.clear();
    table.push(all[i]);
  }
  if (table.chunks() > 0) launch(table);
}

}  // namespace distforge
