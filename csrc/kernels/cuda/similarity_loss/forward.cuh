// Forward: a block owns a tile of rows and streams its slice of the columns; each lane gathers the states of the rows
// that its fragments belong to, which are merged across lanes, warps and slices in a fixed order.
#pragma once

#include "kernels/cuda/similarity_loss/groups.cuh"
#include "kernels/cuda/similarity_loss/row.cuh"
#include "kernels/cuda/similarity_loss/slices.h"

namespace ccp {
namespace cuda {

constexpr int kForwardRows = 128;

struct ForwardJob {
  Items rows, columns;
  int64_t dim;
  Normalize normalize;
  bool exclude_diagonal, resident;
  int64_t slices;
  PositivesList positives;
  float* states;    // [slices, members, rows]
  uint8_t* active;  // nullptr: not wanted
  bool active_columns;
};

template <class State>
constexpr int kMembers = int(sizeof(State) / sizeof(float));

template <class State>
CCP_DEVICE State shuffled(const State& state, int lanes) {
  float members[kMembers<State>];
  memcpy(members, &state, sizeof(state));
#pragma unroll
  for (int i = 0; i < kMembers<State>; ++i) members[i] = __shfl_xor_sync(kFullWarp, members[i], lanes);
  State other;
  memcpy(&other, members, sizeof(state));
  return other;
}

// Visits the tiles of a slice: visit(products of raw vectors) once the tile's products and infos are there.
template <Products products, int kOwner, class Visit>
CCP_DEVICE void stream_tiles(PairTile<kOwner>& tile, int64_t first_owner, TileRange range, bool resident,
                             const Visit& visit) {
  const int64_t chunks = tile.chunks(), loads = (range.end - range.begin) * chunks;
  const auto start = [&](int64_t load) {
    if (load < loads)
      tile.start(load, first_owner, !resident || load < chunks, (range.begin + load / chunks) * kStreamed,
                 load % chunks);
    copy_async_commit();  // an empty group keeps the count
  };
  for (int64_t load = 0; load < kStages - 1; ++load) start(load);
  int64_t load = 0;
  for (int64_t t = range.begin; t < range.end; ++t) {
    FragmentD dot[kM<kOwner>][kN] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk, ++load) {
      copy_async_wait<kStages - 2>();
      __syncthreads();  // everyone's part of this load is there, and nobody still reads the one that is overwritten
                        // next
      start(load + kStages - 1);
      tile.template multiply_chunk<products>(load, chunk, dot);
    }
    tile.describe(first_owner, t * kStreamed);
    __syncthreads();
    visit(dot);
  }
}

// Takes a tile's groups, eight rows of a warp at a time: the four lanes that share a row hand each other its pairs, and
// each goes through every fourth group.
template <class Loss, class State, int kRows>
CCP_DEVICE void update_with_groups(const ForwardJob& job, const Loss& loss, const PairTile<kRows>& tile,
                                   FragmentD (&x)[kM<kRows>][kN], float* stage, State (&states)[kM<kRows>][2]) {
  const GroupSpan span(job.columns.side);
  const int part = tile.streamed_index(0, 0) / kSpan * kSpan;  // where the warp's columns begin
  float* mine = stage + int(threadIdx.x) / 4 * kStageStride;
#pragma unroll
  for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
    for (int n = 0; n < kN; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[m][n].v[i] =
            tile.template value<Loss::kMetric>(x[m][n].v[i], tile.owner_index(m, i), tile.streamed_index(n, i));
#pragma unroll
  for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) mine[tile.streamed_index(n, i) - part] = x[m][n].v[half * 2 + i];
      __syncwarp();
      const int r = tile.owner_index(m, half * 2);
      const int64_t row = tile.owner_info->id[r];
      for (int q = int(threadIdx.x) % 4; q < span.groups; q += 4) {
        const int first = span.first(q);
        const int64_t column = tile.streamed_info->id[part + first];
        if (row < 0 || column < 0 || (job.exclude_diagonal && row == column)) continue;
        const auto group = loss.template group<float>(GroupMembers{mine + first, 1, span.size});
        loss.update(states[m][half], group.value, tile.owner_info->label[r] == tile.streamed_info->label[part + first]);
      }
      __syncwarp();
    }
}

// With kCount the rows' positives count the pairs that they take part in, and nothing else happens.
template <class Loss, Products products, bool kCount>
__global__ void __launch_bounds__(kThreads, 1)
    similarity_forward(const __grid_constant__ ForwardJob job, const __grid_constant__ Loss loss) {
  constexpr int kRows = kForwardRows;
  using State = typename Loss::template State<float>;
  CCP_SHARED(shared);
  PairTile<kRows> tile(job.rows, job.columns, job.dim, job.normalize, job.resident, shared);
  const int64_t row_tiles = divide_up(job.rows.side.count, kRows);
  const int64_t slice = blockIdx.x / row_tiles, first_row = blockIdx.x % row_tiles * kRows;
  const TileRange range = tiles_of_slice(divide_up(job.columns.positions(), kStreamed), slice, job.slices);

  float* stage = reinterpret_cast<float*>(shared + PairTile<kRows>::shared_bytes(job.dim, job.resident));
  State states[kM<kRows>][2];
#pragma unroll
  for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) loss.init(states[m][half]);

  const auto take_groups = [&](auto& dot) { update_with_groups(job, loss, tile, dot, stage, states); };
  const auto take_pairs = [&](const FragmentD(&dot)[kM<kRows>][kN]) {
#pragma unroll
    for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = tile.owner_index(m, half * 2);
        const int64_t row = tile.owner_info->id[r], label = tile.owner_info->label[r];
        const RowPositives positives(job.positives, row);
#pragma unroll
        for (int n = 0; n < kN; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int c = tile.streamed_index(n, i);
            const float x = tile.template value<Loss::kMetric>(dot[m][n].v[half * 2 + i], r, c);
            const int64_t column = tile.streamed_info->id[c];
            if (row < 0 || column < 0 || (job.exclude_diagonal && row == column)) continue;
            const bool same = label == tile.streamed_info->label[c];
            if constexpr (kCount) {
              loss.count_active(x, same, positives);
              continue;
            }
            bool touched;
            if constexpr (Loss::kUsesPositives)
              touched = loss.update(states[m][half], x, same, positives);
            else
              touched = loss.update(states[m][half], x, same);
            // Many lanes may write this byte; all of them write the same.
            if (Loss::kHinge && touched) job.active[job.active_columns ? column : row] = 1;
          }
      }
  };
  if constexpr (Loss::kGrouped)
    stream_tiles<products>(tile, first_row, range, job.resident, take_groups);
  else
    stream_tiles<products>(tile, first_row, range, job.resident, take_pairs);
  if (kCount) return;

  // Four lanes share a row; then the warps that lie side by side do.
  State* merged = reinterpret_cast<State*>(shared);
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kM<kRows>; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      State& state = states[m][half];
      loss.merge(state, shuffled(state, 1));
      loss.merge(state, shuffled(state, 2));
      if (threadIdx.x % 4 == 0)
        merged[int(threadIdx.x) / kWarp % kWarpColumns * kRows + tile.owner_index(m, half * 2)] = state;
    }
  __syncthreads();
  const int64_t row = first_row + threadIdx.x;
  if (int(threadIdx.x) >= kRows || row >= job.rows.side.count) return;
  State state = merged[threadIdx.x];
  for (int w = 1; w < kWarpColumns; ++w) loss.merge(state, merged[w * kRows + threadIdx.x]);
  float members[kMembers<State>];
  memcpy(members, &state, sizeof(state));
  for (int i = 0; i < kMembers<State>; ++i)
    job.states[(slice * kMembers<State> + i) * job.rows.side.count + row] = members[i];
}

}  // namespace cuda
}  // namespace ccp
