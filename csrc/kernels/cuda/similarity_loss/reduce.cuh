// After forward: the slices' states become each row's loss and what backward needs, and the rows' parts one number.
#pragma once

#include "kernels/cuda/similarity_loss/forward.cuh"

namespace ccp {
namespace cuda {

struct ReduceJob {
  const float* states;  // [slices, members, rows]
  int64_t slices, rows, columns;
  Reduction reduction;
  float* loss;
  float* row_state;
  double* normalizer;
  generic::RowParts* block_parts;  // [blocks]
  unsigned* blocks_done;           // [1], zero; where there are several blocks
  float* merged;                   // [members, rows]: the rows are not finished, their states go here
  double* row_parts;               // [6, rows]: the rows' parts are not added up, they go here
};

CCP_DEVICE void add(generic::RowParts& a, const generic::RowParts& b) {
  a.pos += b.pos;
  a.neg += b.neg;
  a.pos_active += b.pos_active;
  a.neg_active += b.neg_active;
  a.pos_entries += b.pos_entries;
  a.neg_entries += b.neg_entries;
}

// The sum over the block, in thread 0; the same tree whatever the warps do first.
CCP_DEVICE generic::RowParts sum_over_block(const generic::RowParts& mine, generic::RowParts* shared) {
  shared[threadIdx.x] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) add(shared[threadIdx.x], shared[threadIdx.x + half]);
  }
  return shared[threadIdx.x];
}

CCP_DEVICE void write_result(const ReduceJob& job, const generic::RowParts& all) {
  double pos = 1, neg = 1;
  if (job.reduction == Reduction::kRowMean) pos = neg = double(job.rows);
  if (job.reduction == Reduction::kMean) pos = all.pos_entries, neg = all.neg_entries;
  if (job.reduction == Reduction::kActiveMean) pos = all.pos_active, neg = all.neg_active;
  // No terms: the sum is zero as well, and so is the mean.
  job.normalizer[0] = pos > 0 ? pos : 1;
  job.normalizer[1] = neg > 0 ? neg : 1;
  if (job.reduction != Reduction::kNone) *job.loss = float(all.pos / job.normalizer[0] + all.neg / job.normalizer[1]);
}

template <class Loss>
__global__ void __launch_bounds__(kThreads) similarity_reduce(const ReduceJob job, const Loss loss) {
  using State = typename Loss::template State<float>;
  CCP_SHARED(bytes);
  auto* shared = reinterpret_cast<generic::RowParts*>(bytes);
  generic::RowParts mine{};
  for (int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x; row < job.rows;
       row += int64_t(gridDim.x) * kThreads) {
    State state;
    loss.init(state);
    for (int64_t slice = 0; slice < job.slices; ++slice) {
      float members[kMembers<State>];
      for (int i = 0; i < kMembers<State>; ++i) members[i] = job.states[(slice * kMembers<State> + i) * job.rows + row];
      State part;
      memcpy(&part, members, sizeof(part));
      loss.merge(state, part);
    }
    float saved[kSaved] = {};
    if (job.merged) {
      float members[kMembers<State>];
      memcpy(members, &state, sizeof(state));
      for (int i = 0; i < kMembers<State>; ++i) job.merged[i * job.rows + row] = members[i];
      continue;
    }
    const generic::RowParts parts = loss.finalize(state, job.columns, saved);
    for (int k = 0; k < kSaved; ++k) job.row_state[k * job.rows + row] = saved[k];
    if (job.row_parts) {
      const double numbers[6] = {parts.pos,        parts.neg,         parts.pos_active,
                                 parts.neg_active, parts.pos_entries, parts.neg_entries};
      for (int k = 0; k < 6; ++k) job.row_parts[k * job.rows + row] = numbers[k];
      continue;
    }
    if (job.reduction == Reduction::kNone) job.loss[row] = float(parts.pos + parts.neg);
    add(mine, parts);
  }
  if (job.merged || job.row_parts) return;
  const generic::RowParts block = sum_over_block(mine, shared);

  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) return write_result(job, block);
  // The block that finishes last adds up all of them, in the order of the blocks.
  job.block_parts[blockIdx.x] = block;
  __threadfence();
  if (atomicAdd(job.blocks_done, 1u) != gridDim.x - 1) return;
  __threadfence();
  generic::RowParts all{};
  for (unsigned b = 0; b < gridDim.x; ++b) add(all, job.block_parts[b]);
  write_result(job, all);
}

}  // namespace cuda
}  // namespace ccp
