// When the forward pass of a loss takes the path for Hopper, and what a block then has in shared memory.
//
//   128 rows, all chunks of them | a ring of chunks of the streamed tiles | barriers, infos | groups pass (groups.cuh)
#pragma once

#include "common/tensor_copy.h"
#include "common/wgmma.h"
#include "kernels/cuda/similarity_loss/groups.cuh"
#include "kernels/cuda/similarity_loss/slices.h"

namespace ccp {
namespace cuda {
namespace hopper {

constexpr int kBlocksEach = 1;  // on a multiprocessor
constexpr int kRows = 128;
constexpr int kMostStages = 12;  // chunks of the ring
constexpr int kInfos = 2;        // tiles that are described while others are looked at
constexpr int kRowChunkBytes = kRows * kRowBytes, kColumnChunkBytes = kStreamed * kRowBytes;

using Pairs = TilePairs<kRows, 1>;  // a warpgroup has 64 rows and all columns, a warp 16
static_assert(Pairs::kRowFragments == 1 && Pairs::kColumnFragments == kWgmmaColumns / 8, "as wgmma lays out its sums");
static_assert(kChunk<uint16_t> == kBoxColumns && kStreamed == kWgmmaColumns, "a box is a chunk of kSpan items");

// Warps 0 .. 7 make products and take pairs, two warpgroups; four describe what passes; one starts the copies.
constexpr int kConsumers = kThreads, kDescribers = 128, kAllThreads = kConsumers + kDescribers + kWarp;
constexpr int kWarpgroups = kConsumers / kWarpgroup;
static_assert(kWarpgroups * kWgmmaRows == kRows, "each of the warpgroups has its rows");

struct Shared {
  Mbarrier rows_there;
  Mbarrier stage_there[kMostStages], stage_free[kMostStages];
  Mbarrier info_there[kInfos], info_free[kInfos];
  Mbarrier turn[kWarpgroups];
  ItemInfo<kRows> row_info;
  ItemInfo<kStreamed> column_info[kInfos];
};

CCP_HD int chunks_of(int64_t dim) { return int(divide_up(dim, kChunk<uint16_t>)); }

inline size_t shared_bytes(int64_t dim, int stages) {
  return kBoxAlignment + size_t(chunks_of(dim)) * kRowChunkBytes + size_t(stages) * kColumnChunkBytes + sizeof(Shared) +
         kGroupBytes;
}

// The stages of the ring: as many as there is room for, and at least a whole tile, since the warpgroups take it in
// turn. 0: there is no room for that.
inline int stages_for(int64_t dim, size_t room) {
  int stages = kMostStages;
  while (stages > 0 && shared_bytes(dim, stages) > room) --stages;
  return stages < chunks_of(dim) || stages < 2 ? 0 : stages;
}

constexpr int64_t kMostItems = (int64_t(1) << 31) - kRows;  // boxes of the last tile begin below 2^31

inline bool can_be_copied(const Side& side, int64_t dim) {
  return side.count > 0 && side.count <= kMostItems && items_of<uint16_t>(side, dim).vectorised;
}

inline bool taken(const Problem& p) {
#if defined(CCP_HAVE_HOPPER)
  return p.hopper && p.rows.dtype == p.columns.dtype && dtype_bytes(p.rows.dtype) == 2 && p.dim > 0 &&
         can_be_copied(p.rows, p.dim) && can_be_copied(p.columns, p.dim) && stages_for(p.dim, p.shared_bytes) > 0;
#else
  return (void)p, false;
#endif
}

}  // namespace hopper
}  // namespace cuda
}  // namespace ccp
