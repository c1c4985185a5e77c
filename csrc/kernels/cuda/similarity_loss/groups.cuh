// Losses that take the columns of a group as one (kGrouped in losses/loss.h): a group's similarities lie in the
// registers of several lanes, and pass through shared memory to the one that needs them all.
#pragma once

#include "kernels/cuda/similarity_loss/items.cuh"

namespace ccp {
namespace cuda {

static_assert(kSpan == kMostMembers, "a group fits into a warp's part of a tile");

// What a lane reads of a group: see losses/loss.h.
struct GroupMembers {
  const float* cell;
  int step;
  int64_t count;
  CCP_DEVICE float operator()(int64_t k) const { return cell[k * step]; }
};

// The groups in a tile of columns: `groups` in each warp's part, of `size` columns.
struct GroupSpan {
  int size, groups;
  CCP_DEVICE explicit GroupSpan(const Side& columns) : size(int(columns.group)), groups(kSpan / size) {}
  // Where group q of the tile begins.
  CCP_DEVICE int first(int q) const { return q / groups * kSpan + q % groups * size; }
};

// Where eight rows of a warp's part of a tile pass in forward.
constexpr int kStageStride = kSpan + 1;
constexpr size_t kGroupBytes = sizeof(float) * kThreads / 4 * kStageStride;
template <class Loss>
constexpr size_t kStageBytes = Loss::kGrouped ? kGroupBytes : 0;

}  // namespace cuda
}  // namespace ccp
