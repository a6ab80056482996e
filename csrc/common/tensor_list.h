#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace distforge {

// Many tensors as one range of elements, so that one parallel loop serves a whole list however its
// sizes are spread.
class ElementRange {
 public:
  // Item needs `numel`.
  template <typename Item>
  explicit ElementRange(const std::vector<Item>& items) {
    begins_.reserve(items.size() + 1);
    begins_.push_back(0);
    for (const Item& item : items) begins_.push_back(begins_.back() + item.numel);
  }

  int64_t numel() const { return begins_.back(); }

  // Calls visit(index, begin, end) for the part of each tensor that lies in [begin, end).
  template <typename Visit>
  void for_each(int64_t begin, int64_t end, const Visit& visit) const {
    auto next = std::upper_bound(begins_.begin(), begins_.end(), begin);
    for (size_t index = next - begins_.begin() - 1; begin < end; ++index) {
      const int64_t stop = std::min(end, begins_[index + 1]);
      if (stop > begin) visit(index, begin - begins_[index], stop - begins_[index]);
      begin = std::max(begin, stop);
    }
  }

 private:
  std::vector<int64_t> begins_;
};

}  // namespace distforge
