// Any k: neighbours below a row's bound, the k-th distance when last looked at, join the row's list in whatever order
// the threads come. When a list has no room for another tile, a warp selects the k nearest, and the bound falls. Which
// k are left in the end depends on no order.
#pragma once

#include "kernels/cuda/nearest_references/job.cuh"

namespace ccp {
namespace cuda {
namespace nearest {

// A block's lists; row r belongs to warp r % kWarps wherever a warp has to do with it.
struct Lists {
  uint64_t* keys;  // [kRows, room], in global memory
  int64_t room, k;
  int* counts;    // [kRows], in shared memory
  float* bounds;  // [kRows], in shared memory

  static constexpr size_t kSharedBytes = kRows * (sizeof(int) + sizeof(float));
  CCP_DEVICE Lists(const Job& job, unsigned char* shared)
      : keys(job.lists + blockIdx.x * kRows * job.room),
        room(job.room),
        k(job.k),
        counts(reinterpret_cast<int*>(shared)),
        bounds(reinterpret_cast<float*>(shared + kRows * sizeof(int))) {}

  CCP_DEVICE uint64_t* of(int r) const { return keys + r * room; }

  CCP_DEVICE void clear() const {
    if (int(threadIdx.x) >= kRows) return;
    counts[threadIdx.x] = 0;
    bounds[threadIdx.x] = __builtin_inff();
  }

  // Of equal distances the first tile's stays: references come by ascending index.
  CCP_DEVICE void take(int r, float squared, int64_t index) const {
    if (squared < bounds[r]) of(r)[atomicAdd(&counts[r], 1)] = key_of(squared, index);
  }

  // Makes room for another tile. The whole block, between barriers.
  CCP_DEVICE void make_room() const {
    const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
    static_assert(kRows / kWarps <= kWarp, "a lane for each row of the warp");
    const bool full = lane < kRows / kWarps && counts[warp + lane * kWarps] > room - kStreamed;
    for (unsigned rows = __ballot_sync(kFullWarp, full); rows; rows &= rows - 1) {
      const int r = warp + (__ffs(int(rows)) - 1) * kWarps, count = counts[r];
      const uint64_t bound = bound_of_nearest(of(r), count, k);
      collect(of(r), count, bound, of(r));
      if (lane == 0) {
        counts[r] = int(k);
        bounds[r] = squared_of(bound);
      }
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) search_many(const __grid_constant__ Job job) {
  CCP_SHARED(shared);
  const Lists lists(job, shared);
  for (int64_t work = blockIdx.x; work < job.row_tiles * job.slices; work += gridDim.x) {
    PairTile<T, kRows> tile(job.anchors, job.references, job.dim, job.normalize, job.arithmetic, job.resident,
                            shared + Lists::kSharedBytes);
    const int64_t slice = work / job.row_tiles, first_row = work % job.row_tiles * kRows;
    const TileRange range = tiles_of_slice(divide_up(job.references.side.count, kStreamed), slice, job.slices);
    lists.clear();
    stream_tiles(tile, first_row, range, job.resident, [&](FragmentD(&dot)[kM<kRows>][kN]) {
      lists.make_room();
      __syncthreads();
      for_each_pair(job, tile, dot, [&](float x, int, int, int r, int64_t column) { lists.take(r, x, column); });
    });
    __syncthreads();
    for (int r = int(threadIdx.x) / kWarp; r < kRows && first_row + r < job.anchors.side.count; r += kWarps) {
      uint64_t* found = job.found + ((first_row + r) * job.slices + slice) * job.k;
      const uint64_t bound = bound_of_nearest(lists.of(r), lists.counts[r], job.k);
      const int64_t count = collect(lists.of(r), lists.counts[r], bound, found);
      for (int64_t i = count + int(threadIdx.x) % kWarp; i < job.k; i += kWarp) found[i] = kNoKey;
    }
    __syncthreads();
  }
}

}  // namespace nearest
}  // namespace cuda
}  // namespace ccp
