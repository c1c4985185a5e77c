// What a call launches and the scratch it needs: the same numbers for whoever allocates and whoever launches.
#pragma once

#include "kernels/cuda/similarity_loss/finish.h"
#include "kernels/cuda/similarity_loss/reduce.cuh"
#include "kernels/cuda/workspace.h"

namespace ccp {
namespace cuda {

constexpr int64_t kMostReduceBlocks = 256;
constexpr int kMostDims = 512;  // components whose gradients a block's registers hold

struct ForwardPlan {
  int64_t row_tiles, slices, reduce_blocks;
  float* states;
  generic::RowParts* block_parts;
  unsigned* blocks_done;
  size_t bytes;
};

inline int64_t reduce_blocks(int64_t rows) {
  const int64_t blocks = divide_up(rows, kThreads);
  return blocks < 1 ? 1 : blocks < kMostReduceBlocks ? blocks : kMostReduceBlocks;
}

inline ForwardPlan plan_forward(const Problem& p, int members, void* memory) {
  Workspace workspace(memory);
  ForwardPlan plan;
  plan.row_tiles = divide_up(p.rows.count, kForwardRows);
  plan.slices = slices_for(plan.row_tiles, divide_up(positions_of(p.columns), kStreamed), p.multiprocessors);
  plan.reduce_blocks = reduce_blocks(p.rows.count);
  plan.states = workspace.take<float>(plan.slices * members * p.rows.count);
  plan.block_parts = workspace.take<generic::RowParts>(plan.reduce_blocks);
  plan.blocks_done = workspace.take<unsigned>(1);
  plan.bytes = workspace.bytes();
  return plan;
}

// The gradient of one side.
struct GradientPlan {
  int64_t owner_tiles, slices, dim_blocks;
  float *partial, *partial_along;
};

inline GradientPlan plan_gradient(const Side& owner, const Side& streamed, const Problem& p, Workspace& workspace) {
  GradientPlan plan;
  plan.owner_tiles = divide_up(positions_of(owner), kGradientOwner);
  plan.dim_blocks = p.dim > kMostDims ? divide_up(p.dim, kMostDims) : 1;
  plan.slices =
      slices_for(plan.owner_tiles * plan.dim_blocks, divide_up(positions_of(streamed), kStreamed), p.multiprocessors);
  const bool parts = plan.slices > 1 || plan.dim_blocks > 1;
  const int64_t items = parts ? plan.slices * plan.owner_tiles * kGradientOwner : 0;
  plan.partial = workspace.take<float>(items * p.dim);
  plan.partial_along = workspace.take<float>(items);
  if (!parts) plan.partial = plan.partial_along = nullptr;
  return plan;
}

struct BackwardPlan {
  int64_t *chosen, *chosen_count;
  GradientPlan rows, columns;
  size_t bytes;
};

inline BackwardPlan plan_backward(const Problem& p, const Backward& out, bool hinge, void* memory) {
  Workspace workspace(memory);
  BackwardPlan plan{};
  const int64_t longer = p.columns.count >= p.rows.count ? p.columns.count : p.rows.count;
  plan.chosen = workspace.take<int64_t>(hinge ? longer : 0);
  plan.chosen_count = workspace.take<int64_t>(1);
  if (out.grad_rows) plan.rows = plan_gradient(p.rows, p.columns, p, workspace);
  if (out.grad_columns) plan.columns = plan_gradient(p.columns, p.rows, p, workspace);
  plan.bytes = workspace.bytes();
  return plan;
}

}  // namespace cuda
}  // namespace ccp
