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
  Arithmetic arithmetic;
  bool exclude_diagonal, resident;
  int64_t slices;
  PositivesList positives;
  float* states;          // [slices, members, rows]
  uint8_t* active;        // of the longer side's items
  bool active_columns;    // that side are the columns
  bool clear_active;      // each of these is seen by one block alone, which clears them
  unsigned* blocks_done;  // becomes zero, for similarity_reduce
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
template <class T, int kOwner, class Visit>
CCP_DEVICE void stream_tiles(PairTile<T, kOwner>& tile, int64_t first_owner, TileRange range, bool resident,
                             const Visit& visit) {
  const int chunks = tile.chunks();
  int ahead = range.begin, ahead_chunk = 0;  // tile and chunk of the next load
  const auto start_next = [&] {
    if (ahead < range.end) {
      tile.start(first_owner, !resident || ahead == range.begin, int64_t(ahead) * kStreamed, ahead_chunk);
      if (++ahead_chunk == chunks) ahead_chunk = 0, ++ahead;
    }
    copy_async_commit();  // an empty group keeps the count
  };
  for (int load = 0; load < kStages - 1; ++load) start_next();
  for (int t = range.begin; t < range.end; ++t) {
    const bool with_owner = !resident || t == range.begin;
    FragmentD dot[kM<kOwner>][kN] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      copy_async_wait<kStages - 2>();
      __syncthreads();  // everyone's part of this load is there, and nobody still reads the one that is overwritten
                        // next
      start_next();
      tile.multiply(chunk, with_owner, dot);
      tile.forget_load();
    }
    tile.describe(first_owner, with_owner, int64_t(t) * kStreamed);
    __syncthreads();
    visit(dot);
  }
}

// Takes a tile's groups, eight rows and kSpan columns of a warp at a time: the four lanes that share a row hand each
// other its pairs, and each goes through every fourth group.
template <class Loss, class State, class Tile>
CCP_DEVICE void update_with_groups(const ForwardJob& job, const Loss& loss, const Tile& tile,
                                   const typename Tile::Fragments& x, float* stage,
                                   State (&states)[Tile::kRowFragments][2]) {
  constexpr int kSpanFragments = kSpan / 8;
  const GroupSpan span(job.columns.side);
  float* mine = stage + int(threadIdx.x) / 4 * kStageStride;
#pragma unroll
  for (int m = 0; m < Tile::kRowFragments; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int begin = 0; begin < Tile::kColumnFragments; begin += kSpanFragments) {
        const int part = tile.first_streamed() + begin * 8;  // where the span's columns begin
#pragma unroll
        for (int n = begin; n < begin + kSpanFragments; ++n)
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
          loss.update(states[m][half], group.value,
                      tile.owner_info->label[r] == tile.streamed_info->label[part + first]);
        }
        __syncwarp();
      }
}

// The positives of the lane's rows, for a loss that uses them: found before a tile's pairs are looked at, since
// whatever is written in between may be what they are read from, for all that the compiler knows.
template <bool kUsesPositives, int kRows>
struct LaneRows {
  template <class Tile>
  CCP_DEVICE void find(const PositivesList&, const Tile&) {}
};
template <int kRows>
struct LaneRows<true, kRows> {
  RowPositives of[kRows][2];

  template <class Tile>
  CCP_DEVICE void find(const PositivesList& list, const Tile& tile) {
#pragma unroll
    for (int m = 0; m < kRows; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        of[m][half] = RowPositives(list, tile.owner_info->id[tile.owner_index(m, half * 2)]);
  }
};

// Takes a tile's pairs, each by itself. With kCount the rows' positives count the pairs that they take part in, and
// nothing else happens.
template <bool kCount, class Loss, class State, class Tile>
CCP_DEVICE void update_with_pairs(const ForwardJob& job, const Loss& loss, const Tile& tile,
                                  const typename Tile::Fragments& x, State (&states)[Tile::kRowFragments][2]) {
  LaneRows<Loss::kUsesPositives, Tile::kRowFragments> rows;
  rows.find(job.positives, tile);
  // Columns outside: what is known of one serves the lane's rows at once.
#pragma unroll
  for (int n = 0; n < Tile::kColumnFragments; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int c = tile.streamed_index(n, i);
      const int64_t column = tile.streamed_info->id[c];
#pragma unroll
      for (int m = 0; m < Tile::kRowFragments; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = tile.owner_index(m, half * 2);
          const int64_t row = tile.owner_info->id[r];
          if (row < 0 || column < 0 || (job.exclude_diagonal && row == column)) continue;
          const bool same = tile.owner_info->label[r] == tile.streamed_info->label[c];
          const float value = x[m][n].v[half * 2 + i];
          if constexpr (kCount) {
            loss.count_active(value, same, rows.of[m][half]);
            continue;
          }
          bool touched;
          if constexpr (Loss::kUsesPositives)
            touched = loss.update(states[m][half], value, same, rows.of[m][half]);
          else
            touched = loss.update(states[m][half], value, same);
          // Many lanes may write this byte; all of them write the same.
          if (Loss::kHinge && touched) job.active[job.active_columns ? column : row] = 1;
        }
    }
}

// A tile's dot products of raw vectors, which become the metric of its pairs, go into the states of the lane's rows.
template <bool kCount, class Loss, class State, class Tile>
CCP_DEVICE void take_tile(const ForwardJob& job, const Loss& loss, const Tile& tile, typename Tile::Fragments& x,
                          float* stage, State (&states)[Tile::kRowFragments][2]) {
  tile.template measure<Loss::kMetric>(x);
  if constexpr (Loss::kGrouped)
    update_with_groups(job, loss, tile, x, stage, states);
  else
    update_with_pairs<kCount>(job, loss, tile, x, states);
}

template <class Loss, class State, int kRows>
CCP_DEVICE void init_states(const Loss& loss, State (&states)[kRows][2]) {
#pragma unroll
  for (int m = 0; m < kRows; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) loss.init(states[m][half]);
}

// Four lanes share a row: each then has what all four have gathered.
template <class Loss, class State>
CCP_DEVICE void merge_lanes(const Loss& loss, State& state) {
  loss.merge(state, shuffled(state, 1));
  loss.merge(state, shuffled(state, 2));
}

template <class State>
CCP_DEVICE void write_state(const ForwardJob& job, int64_t slice, int64_t row, const State& state) {
  float members[kMembers<State>];
  memcpy(members, &state, sizeof(state));
  for (int i = 0; i < kMembers<State>; ++i)
    job.states[(slice * kMembers<State> + i) * job.rows.side.count + row] = members[i];
}

// Before any pair is looked at: what a loss without a hinge, or a block that sees its items alone, knows of activity.
CCP_DEVICE void prepare_active(const ForwardJob& job, bool hinge, int64_t first_row, TileRange range) {
  int64_t begin, end;
  if (!hinge) {
    const int64_t all = job.active_columns ? job.columns.side.count : job.rows.side.count;
    begin = all * blockIdx.x / gridDim.x, end = all * (blockIdx.x + 1) / gridDim.x;
  } else if (!job.clear_active) {
    return;
  } else if (job.active_columns) {
    begin = int64_t(range.begin) * kStreamed, end = min_of(int64_t(range.end) * kStreamed, job.columns.side.count);
  } else {
    begin = first_row, end = min_of(first_row + kForwardRows, job.rows.side.count);
  }
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) job.active[i] = !hinge;
}

// Two blocks on a multiprocessor, each of which works while the other waits, where half of its registers suffice:
// they do not for a distance, which has a root.
template <class Loss, class T>
constexpr int kForwardBlocks =
    sizeof(T) == 2 && !Loss::kGrouped && !Loss::kHinge && Loss::kMetric != Metric::kDistance ? 2 : 1;

template <class Loss, class T, bool kCount>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<Loss, T>)
    similarity_forward(const __grid_constant__ ForwardJob job, const __grid_constant__ Loss loss) {
  constexpr int kRows = kForwardRows;
  using Tile = PairTile<T, kRows>;
  using State = typename Loss::template State<float>;
  CCP_SHARED(shared);
  Tile tile(job.rows, job.columns, job.dim, job.normalize, job.arithmetic, job.resident, shared);
  const int64_t row_tiles = divide_up(job.rows.side.count, kRows);
  const int64_t slice = blockIdx.x / row_tiles, first_row = blockIdx.x % row_tiles * kRows;
  const TileRange range = tiles_of_slice(divide_up(job.columns.positions(), kStreamed), slice, job.slices);
  if (!kCount) {
    prepare_active(job, Loss::kHinge, first_row, range);  // the pipeline's barriers follow before anyone adds to it
    if (blockIdx.x == 0 && threadIdx.x == 0) *job.blocks_done = 0;
  }

  float* stage = reinterpret_cast<float*>(shared + Tile::shared_bytes(job.dim, job.resident));
  State states[Tile::kRowFragments][2];
  init_states(loss, states);
  stream_tiles(tile, first_row, range, job.resident,
               [&](typename Tile::Fragments& x) { take_tile<kCount>(job, loss, tile, x, stage, states); });
  if (kCount) return;

  // The warps that lie side by side share rows as well. Nobody reads the chunks any more.
  State* merged = reinterpret_cast<State*>(shared);
#pragma unroll
  for (int m = 0; m < Tile::kRowFragments; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      merge_lanes(loss, states[m][half]);
      if (threadIdx.x % 4 == 0)
        merged[int(threadIdx.x) / kWarp % kWarpColumns * kRows + tile.owner_index(m, half * 2)] = states[m][half];
    }
  __syncthreads();
  const int64_t row = first_row + threadIdx.x;
  if (int(threadIdx.x) >= kRows || row >= job.rows.side.count) return;
  State state = merged[threadIdx.x];
  for (int w = 1; w < kWarpColumns; ++w) loss.merge(state, merged[w * kRows + threadIdx.x]);
  write_state(job, slice, row, state);
}

}  // namespace cuda
}  // namespace ccp
