// What the kernels are told.
#pragma once

#include "kernels/cuda/nearest_references/keys.cuh"

namespace ccp {
namespace cuda {
namespace nearest {

constexpr int kRows = kForwardRows;

struct Job {
  Items anchors, references;
  int64_t dim;
  int64_t k;  // as many as there are references, at most
  Normalize normalize;
  Arithmetic arithmetic;
  bool exclude_diagonal, resident;
  int64_t row_tiles, slices;
  int64_t room;     // keys that a list holds: k, a tile's worth, and more, so that a selection is worth its while
  uint64_t* lists;  // [blocks, kRows, room]
  uint64_t* found;  // [anchors, slices, k] the nearest of each slice in any order, kNoKey behind the last
};

// f(x, m, half, r, column) for every pair of the tile that counts: the squared distance x of row r of the block and a
// reference. Each lane has pairs of its own. `dot` becomes the squared distances.
template <class F>
CCP_DEVICE void for_each_pair(const Job& job, const TilePairs<kRows>& tile, FragmentD (&dot)[kM<kRows>][kN],
                              const F& f) {
  tile.template measure<Metric::kSquaredDistance>(dot);
#pragma unroll
  for (int n = 0; n < kN; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t column = tile.streamed_info->id[tile.streamed_index(n, i)];
#pragma unroll
      for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = tile.owner_index(m, half * 2);
          const int64_t row = tile.owner_info->id[r];
          if (row >= 0 && column >= 0 && !(job.exclude_diagonal && row == column))
            f(dot[m][n].v[half * 2 + i], m, half, r, column);
        }
    }
}

}  // namespace nearest
}  // namespace cuda
}  // namespace ccp
