// What a loss reads of a row's positives on the GPU: see Positives in losses/loss.h.
#pragma once

#include "kernels/cuda/similarity_loss.h"

namespace ccp {
namespace cuda {

struct RowPositives {
  int64_t count;
  float farthest;
  const float* distances;
  const int64_t* columns;
  int32_t* counters;

  RowPositives() = default;
  CCP_DEVICE RowPositives(const PositivesList& list, int64_t row) : count(0), farthest(0) {
    if (row < 0 || !list.starts) return;
    const int64_t begin = list.starts[row];
    count = list.starts[row + 1] - begin;
    farthest = list.farthest[row];
    distances = list.distances + begin;
    columns = list.columns + begin;
    counters = list.active + begin;
  }

  CCP_DEVICE float distance(int64_t o) const { return distances[o]; }
  CCP_DEVICE float active(int64_t o) const { return float(counters[o]); }
  CCP_DEVICE void count_active(int64_t o, bool violated) const {
    if (violated) atomicAdd(&counters[o], 1);
  }
  // Which of the row's positives a column is.
  CCP_DEVICE int64_t ordinal(int64_t column) const {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (columns[middle] < column)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
};

}  // namespace cuda
}  // namespace ccp
