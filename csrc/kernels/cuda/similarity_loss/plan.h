// What a call launches and the scratch it needs: the same numbers for whoever allocates and whoever launches.
#pragma once

#include "kernels/cuda/similarity_loss/both_gradients.cuh"
#include "kernels/cuda/similarity_loss/finish.h"
#include "kernels/cuda/similarity_loss/hopper/plan.h"
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
  plan.slices = slices_for(plan.row_tiles, divide_up(positions_of(p.columns), kStreamed), p.multiprocessors,
                           hopper::taken(p) ? hopper::kBlocksEach : kBlocksPerMultiprocessor);
  plan.reduce_blocks = reduce_blocks(p.rows.count);
  plan.states = workspace.take<float>(plan.slices * members * p.rows.count);
  plan.block_parts = workspace.take<generic::RowParts>(plan.reduce_blocks);
  plan.blocks_done = workspace.take<unsigned>(1);
  plan.bytes = workspace.bytes();
  return plan;
}

// The gradient of one side where sides are done apart.
struct GradientPlan {
  int64_t owner_tiles, slices;
  float *partial, *partial_along;
};

inline int64_t dim_blocks(int64_t dim) { return dim > kMostDims ? divide_up(dim, kMostDims) : 1; }

inline GradientPlan plan_gradient(const Side& owner, const Side& streamed, const Problem& p, Workspace& workspace) {
  GradientPlan plan;
  plan.owner_tiles = divide_up(positions_of(owner), kGradientOwner);
  plan.slices =
      slices_for(plan.owner_tiles * dim_blocks(p.dim), divide_up(positions_of(streamed), kStreamed), p.multiprocessors);
  const bool parts = plan.slices > 1 || p.dim > kMostDims;
  const int64_t items = parts ? plan.slices * plan.owner_tiles * kGradientOwner : 0;
  plan.partial = workspace.take<float>(items * p.dim);
  plan.partial_along = workspace.take<float>(items);
  if (!parts) plan.partial = plan.partial_along = nullptr;
  return plan;
}

// Both gradients in one pass.
struct BothPlan {
  int64_t blocks, unit, units;
  float *partial, *partial_along;
};

inline BothPlan plan_both(const Side& owner, const Side& streamed, const Problem& p, bool hinge, Workspace& workspace) {
  BothPlan plan;
  const int64_t tiles = divide_up(owner.count, kGradientOwner);
  if (hinge) {  // whole tiles, two units for a multiprocessor where there are enough
    const int64_t even = divide_up(tiles, 2 * int64_t(p.multiprocessors)) * kGradientOwner;
    plan.unit = min_of(even, kFlags);
    plan.units = divide_up(owner.count, plan.unit);
    plan.blocks = min_of(plan.units, p.multiprocessors);
  } else {
    plan.unit = 0;
    plan.units = plan.blocks = min_of(divide_up(positions_of(owner), kGradientOwner), p.multiprocessors);
  }
  const int64_t items = plan.blocks * both_streamed_tiles(streamed) * kStreamed;
  plan.partial = workspace.take<float>(items * p.dim);
  plan.partial_along = workspace.take<float>(items);
  return plan;
}

struct BackwardPlan {
  bool both;
  BothPlan of_both;
  int64_t *chosen, *chosen_count, *block_counts;
  GradientPlan rows, columns;
  size_t bytes;
};

inline bool has_pairs(const Problem& p) { return p.rows.count > 0 && p.columns.count > 0; }

// Otherwise gradients are zero.
inline bool has_gradients(const Problem& p) { return has_pairs(p) && p.dim > 0; }

inline bool columns_are_longer(const Problem& p) { return p.columns.count >= p.rows.count; }

inline bool both_fit(const Problem& p, const Backward& out) {
  const Side& streamed = columns_are_longer(p) ? p.rows : p.columns;
  if (!out.grad_rows || !out.grad_columns || p.dim > kBothDims || positions_of(streamed) > kBothTiles * kStreamed)
    return false;
  const size_t bytes = with_tile_type(
      p.rows, p.columns, [&](auto number) { return both_shared_bytes<decltype(number)>(streamed, p.dim); });
  return bytes <= p.shared_bytes;
}

inline BackwardPlan plan_backward(const Problem& p, const Backward& out, bool hinge, void* memory) {
  Workspace workspace(memory);
  BackwardPlan plan{};
  if (!has_gradients(p)) return plan;
  plan.both = both_fit(p, out);
  if (plan.both) {
    const bool columns = columns_are_longer(p);
    plan.of_both = plan_both(columns ? p.columns : p.rows, columns ? p.rows : p.columns, p, hinge, workspace);
  } else {
    const int64_t longer = columns_are_longer(p) ? p.columns.count : p.rows.count;
    plan.chosen = workspace.take<int64_t>(hinge ? longer : 0);
    plan.chosen_count = workspace.take<int64_t>(1);
    plan.block_counts = workspace.take<int64_t>(hinge ? list_blocks(longer) : 0);
    if (out.grad_rows) plan.rows = plan_gradient(p.rows, p.columns, p, workspace);
    if (out.grad_columns) plan.columns = plan_gradient(p.columns, p.rows, p, workspace);
  }
  plan.bytes = workspace.bytes();
  return plan;
}

}  // namespace cuda
}  // namespace ccp
