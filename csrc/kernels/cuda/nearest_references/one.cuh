// k = 1: every lane remembers the nearest that it has met of each of its rows.
#pragma once

#include "kernels/cuda/nearest_references/job.cuh"

namespace ccp {
namespace cuda {
namespace nearest {

template <class T>
__global__ void __launch_bounds__(kThreads, 1) search_one(const __grid_constant__ Job job) {
  CCP_SHARED(shared);
  PairTile<T, kRows> tile(job.anchors, job.references, job.dim, job.normalize, job.arithmetic, job.resident, shared);
  const int64_t slice = blockIdx.x / job.row_tiles, first_row = blockIdx.x % job.row_tiles * kRows;
  const TileRange range = tiles_of_slice(divide_up(job.references.side.count, kStreamed), slice, job.slices);

  // References come by ascending index, so the first of those equally far stays.
  float best[kM<kRows>][2];
  int32_t where[kM<kRows>][2];
#pragma unroll
  for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) best[m][half] = __builtin_inff(), where[m][half] = -1;
  stream_tiles(tile, first_row, range, job.resident, [&](FragmentD(&dot)[kM<kRows>][kN]) {
    for_each_pair(job, tile, dot, [&](float x, int m, int half, int, int64_t column) {
      if (x < best[m][half]) best[m][half] = x, where[m][half] = int32_t(column);
    });
  });

  // Four lanes share a row; then the warps that lie side by side do. Nobody reads the chunks any more.
  uint64_t* nearest = reinterpret_cast<uint64_t*>(shared);
#pragma unroll
  for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint64_t key = where[m][half] < 0 ? kNoKey : key_of(best[m][half], where[m][half]);
      key = nearer(key, __shfl_xor_sync(kFullWarp, key, 1));
      key = nearer(key, __shfl_xor_sync(kFullWarp, key, 2));
      if (threadIdx.x % 4 == 0)
        nearest[int(threadIdx.x) / kWarp % kWarpColumns * kRows + tile.owner_index(m, half * 2)] = key;
    }
  __syncthreads();
  const int64_t row = first_row + threadIdx.x;
  if (int(threadIdx.x) >= kRows || row >= job.anchors.side.count) return;
  uint64_t key = nearest[threadIdx.x];
  for (int w = 1; w < kWarpColumns; ++w) key = nearer(key, nearest[w * kRows + threadIdx.x]);
  job.found[row * job.slices + slice] = key;
}

}  // namespace nearest
}  // namespace cuda
}  // namespace ccp
