// Forward on Hopper: as forward.cuh, but the products are wgmma's, which reads its operands from shared memory by
// itself, and each warp has one task:
//
//   one thread copies: the block's rows, then chunk after chunk of the columns into a ring of stages;
//   four warps describe: norms from the chunks that pass, labels and scales into one of two infos;
//   two warpgroups take turns at the tensor cores, and each takes the pairs of its products while the other multiplies.
//
// Pairs, states and what comes of them are the same code as without (take_tile in forward.cuh).
#pragma once

#include "kernels/cuda/similarity_loss/forward.cuh"
#include "kernels/cuda/similarity_loss/hopper/plan.h"

namespace ccp {
namespace cuda {
namespace hopper {

struct Maps {
  TensorMap rows, columns;
};

// A place in a ring, and how often one has been round: the parity to wait for.
struct Place {
  int at = 0;
  unsigned parity = 0;
  CCP_DEVICE void move_on(int size) {
    if (++at == size) at = 0, parity ^= 1;
  }
};

// A warp is done with something.
CCP_DEVICE void warp_arrives(Mbarrier* barrier CCP_AND_HERE) {
  if (threadIdx.x % kWarp == 0) mbarrier_arrive(barrier CCP_FROM_HERE);
}

// The block's memory and its part of the work.
struct Block {
  unsigned char *rows, *ring;
  Shared& shared;
  int chunks, stages;
  int64_t first_row;
  TileRange tiles;

  CCP_DEVICE unsigned char* row_chunk(int chunk) const { return rows + chunk * kRowChunkBytes; }
  CCP_DEVICE unsigned char* stage(int i) const { return ring + i * kColumnChunkBytes; }
};

// By one thread.
CCP_DEVICE void init_barriers(Shared& shared, int stages) {
  constexpr int kConsumerWarps = kConsumers / kWarp, kDescriberWarps = kDescribers / kWarp;
  mbarrier_init(&shared.rows_there, 1);
  for (int i = 0; i < stages; ++i) {
    mbarrier_init(&shared.stage_there[i], 1);
    mbarrier_init(&shared.stage_free[i], kConsumerWarps + kDescriberWarps);
  }
  for (int i = 0; i < kInfos; ++i) {
    mbarrier_init(&shared.info_there[i], kDescriberWarps);
    mbarrier_init(&shared.info_free[i], kConsumerWarps);
  }
  for (int i = 0; i < kWarpgroups; ++i) mbarrier_init(&shared.turn[i], kWarpgroup / kWarp);
  mbarrier_fence();
}

// The row of the matrix where a span of positions begins.
CCP_DEVICE int first_item(const Side& side, int64_t span) {
  return int(span * (side.per_span ? side.per_span : kSpan));
}

// Copies in boxes of kSpan items. One thread.
CCP_DEVICE void copy_all(const ForwardJob& job, const Maps& maps, const Block& block) {
  mbarrier_expect(&block.shared.rows_there, unsigned(block.chunks * kRowChunkBytes));
  for (int chunk = 0; chunk < block.chunks; ++chunk)
    for (int i = 0; i < kRows; i += kSpan)
      copy_box(block.row_chunk(chunk) + i * kRowBytes, maps.rows, chunk * kBoxColumns, int(block.first_row) + i,
               &block.shared.rows_there);
  Place to;
  for (int t = block.tiles.begin; t < block.tiles.end; ++t)
    for (int chunk = 0; chunk < block.chunks; ++chunk) {
      mbarrier_wait(&block.shared.stage_free[to.at], to.parity ^ 1);
      mbarrier_expect(&block.shared.stage_there[to.at], kColumnChunkBytes);
      for (int i = 0; i < kStreamed; i += kSpan)
        copy_box(block.stage(to.at) + i * kRowBytes, maps.columns, chunk * kBoxColumns,
                 first_item(job.columns.side, (int64_t(t) * kStreamed + i) / kSpan), &block.shared.stage_there[to.at]);
      to.move_on(block.stages);
    }
}

// Norms and labels: of the rows before the first tile is.
CCP_DEVICE void describe_all(const ForwardJob& job, const Block& block) {
  Shared& shared = block.shared;
  mbarrier_wait(&shared.rows_there, 0);
  Squares<uint16_t, kRows, kDescribers> row_squares;
  for (int chunk = 0; chunk < block.chunks; ++chunk) row_squares.add(block.row_chunk(chunk), job.arithmetic);
  describe_items(
      job.rows, [&](int i) { return job.rows.at(block.first_row + i); }, job.dim, job.normalize, row_squares,
      shared.row_info);

  Place from, to;
  Squares<uint16_t, kStreamed, kDescribers> squares;
  for (int t = block.tiles.begin; t < block.tiles.end; ++t) {
    for (int chunk = 0; chunk < block.chunks; ++chunk) {
      mbarrier_wait(&shared.stage_there[from.at], from.parity);
      squares.add(block.stage(from.at), job.arithmetic);
      __syncwarp();
      warp_arrives(&shared.stage_free[from.at]);
      from.move_on(block.stages);
    }
    mbarrier_wait(&shared.info_free[to.at], to.parity ^ 1);
    describe_items(
        job.columns, [&](int i) { return job.columns.at(int64_t(t) * kStreamed + i); }, job.dim, job.normalize, squares,
        shared.column_info[to.at]);
    __syncwarp();
    warp_arrives(&shared.info_there[to.at]);
    to.move_on(kInfos);
  }
}

// dot += the products of a warpgroup's rows with the tile that comes next. Stages are given back as soon as they are
// read.
template <Dtype dtype>
CCP_DEVICE void multiply_tile(const Block& block, int first_row, Place& from, WgmmaSums& dot) {
  Shared& shared = block.shared;
  int before = 0;  // the stage of the chunk before
#pragma unroll 1
  for (int chunk = 0; chunk < block.chunks; ++chunk) {
    mbarrier_wait(&shared.stage_there[from.at], from.parity);
    wgmma_fence();
    const uint64_t rows = matrix_at(block.row_chunk(chunk) + first_row * kRowBytes);
    const uint64_t columns = matrix_at(block.stage(from.at));
#pragma unroll
    for (int k = 0; k < kRowBytes; k += kWgmmaK * 2) wgmma<dtype>(dot, rows + k / kUnitBytes, columns + k / kUnitBytes);
    wgmma_commit();
    if (chunk > 0) {
      wgmma_wait<1>();
      warp_arrives(&shared.stage_free[before]);
    }
    before = from.at;
    from.move_on(block.stages);
  }
  wgmma_wait<0>();
  keep_sums(dot);
  warp_arrives(&shared.stage_free[before]);
}

template <class Loss>
CCP_DEVICE void take_all(const ForwardJob& job, const Loss& loss, const Block& block, float* stage, int64_t slice) {
  using State = typename Loss::template State<float>;
  Shared& shared = block.shared;
  const int group = int(threadIdx.x) / kWarpgroup;
  State states[Pairs::kRowFragments][2];
  init_states(loss, states);
  mbarrier_wait(&shared.rows_there, 0);
  Place from, info;
  unsigned turn = group == 0;  // the parity to wait for: the first is the first's
  for (int t = block.tiles.begin; t < block.tiles.end; ++t) {
    WgmmaSums dot = {};
    mbarrier_wait(&shared.turn[group], turn);
    turn ^= 1;
    if (job.arithmetic.dtype == Dtype::kBFloat16)
      multiply_tile<Dtype::kBFloat16>(block, group * kWgmmaRows, from, dot);
    else
      multiply_tile<Dtype::kFloat16>(block, group * kWgmmaRows, from, dot);
    warp_arrives(&shared.turn[1 - group]);

    mbarrier_wait(&shared.info_there[info.at], info.parity);
    const Pairs pairs(job.rows, job.columns, job.dim, &shared.row_info, &shared.column_info[info.at]);
    take_tile<false>(job, loss, pairs, dot, stage, states);
    __syncwarp();
    warp_arrives(&shared.info_free[info.at]);
    info.move_on(kInfos);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    merge_lanes(loss, states[0][half]);
    const int64_t row = block.first_row + Pairs::owner_index(0, half * 2);
    if (threadIdx.x % 4 == 0 && row < job.rows.side.count) write_state(job, slice, row, states[0][half]);
  }
}

template <class Loss>
__global__ void __launch_bounds__(kAllThreads, kBlocksEach)
    similarity_forward(const __grid_constant__ ForwardJob job, const __grid_constant__ Maps maps,
                       const __grid_constant__ Loss loss, int stages) {
  CCP_SHARED(bytes);
  const int64_t row_tiles = divide_up(job.rows.side.count, kRows);
  const int64_t slice = blockIdx.x / row_tiles, first_row = blockIdx.x % row_tiles * kRows;
  const int chunks = chunks_of(job.dim);
  unsigned char* rows = bytes + (kBoxAlignment - shared_address(bytes) % kBoxAlignment) % kBoxAlignment;
  unsigned char* ring = rows + chunks * kRowChunkBytes;
  Shared& shared = *reinterpret_cast<Shared*>(ring + stages * kColumnChunkBytes);
  float* stage = reinterpret_cast<float*>(&shared + 1);
  const Block block{rows,
                    ring,
                    shared,
                    chunks,
                    stages,
                    first_row,
                    tiles_of_slice(divide_up(job.columns.positions(), kStreamed), slice, job.slices)};
  if (threadIdx.x < kConsumers) prepare_active(job, Loss::kHinge, first_row, block.tiles);
  if (threadIdx.x == 0) {
    init_barriers(shared, stages);
    if (blockIdx.x == 0) *job.blocks_done = 0;
  }
  __syncthreads();
  // Lane 0's, so that the compiler sees that a warp stays together, as wgmma wants it.
  const int warp = __shfl_sync(kFullWarp, int(threadIdx.x) / kWarp, 0);
  if (warp < kConsumers / kWarp)
    take_all(job, loss, block, stage, slice);
  else if (warp < (kConsumers + kDescribers) / kWarp)
    describe_all(job, block);
  else if (threadIdx.x % kWarp == 0)
    copy_all(job, maps, block);
}

}  // namespace hopper
}  // namespace cuda
}  // namespace ccp
