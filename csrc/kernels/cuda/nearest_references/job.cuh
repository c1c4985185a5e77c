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
  bool exclude_diagonal, resident;
  int64_t row_tiles, slices;
  int64_t room;     // keys that a list holds: k, a tile's worth, and more, so that a selection is worth its while
  uint64_t* lists;  // [blocks, kRows, room]
  uint64_t* found;  // [anchors, slices, k] the nearest of each slice in any order, kNoKey behind the last
};

// f(x, r, row, column) for every pair of the tile that counts: the squared distance x of row r of the block, which is
// anchor `row`, and a reference. Each lane has pairs of its own.
template <class F>
CCP_DEVICE void for_each_pair(const Job& job, const PairTile<kRows>& tile, const FragmentD (&dot)[kM<kRows>][kN],
                              const F& f) {
#pragma unroll
  for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = tile.owner_index(m, half * 2);
      const int64_t row = tile.owner_info->id[r];
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int c = tile.streamed_index(n, i);
          const float x = tile.template value<Metric::kSquaredDistance>(dot[m][n].v[half * 2 + i], r, c);
          const int64_t column = tile.streamed_info->id[c];
          if (row >= 0 && column >= 0 && !(job.exclude_diagonal && row == column)) f(x, m, half, r, column);
        }
    }
}

}  // namespace nearest
}  // namespace cuda
}  // namespace ccp
