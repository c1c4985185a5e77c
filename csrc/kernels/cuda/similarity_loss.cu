// Chooses the launches of a loss, and puts the gradients of both sides together from them.
#include "kernels/cuda/similarity_loss.h"
#include "kernels/cuda/similarity_loss/launch.h"
#include "kernels/cuda/similarity_loss/plan.h"

namespace ccp {
namespace cuda {

namespace {

Launches launches_of(LossId loss) {
  switch (loss) {
#define CCP_CASE(name, parameters, ...) \
  case LossId::k_##name:                \
    return launches<LossId::k_##name>();
    CCP_FOR_EACH_LOSS(CCP_CASE)
#undef CCP_CASE
  }
  return {};
}

// Tiles of the columns are cut so that no group is.
Problem in_whole_groups(Problem p) {
  if (launches_of(p.loss).grouped && p.columns.group > 1)
    p.columns.per_span = kSpan / int(p.columns.group) * int(p.columns.group);
  return p;
}

cudaError_t clear(void* gradient, const Side& side, int64_t dim, cudaStream_t stream) {
  return gradient ? clear_memory(gradient, side.count * dim * dtype_bytes(side.dtype), stream) : cudaSuccess;
}

GradientInputs inputs_of(const Problem& p, const Backward& out) {
  return {p.dim,
          p.normalize,
          {p.products, p.rows.dtype},
          p.exclude_diagonal,
          p.positives,
          p.rows.count,
          out.reduction,
          out.grad_loss,
          out.row_state,
          out.normalizer};
}

// The longer side in a block's hands, the other one passes by: two launches.
cudaError_t both_at_once(const Problem& p, const Backward& out, const Launches& loss, const BothPlan& plan,
                         cudaStream_t stream) {
  const bool columns = columns_are_longer(p);
  const auto items = [&](const Side& side) {
    return with_tile_type(p.rows, p.columns, [&](auto number) { return items_of<decltype(number)>(side, p.dim); });
  };
  const BothJob job{inputs_of(p, out),
                    items(columns ? p.columns : p.rows),
                    items(columns ? p.rows : p.columns),
                    !columns,
                    out.active,
                    plan.unit,
                    plan.units,
                    columns ? out.grad_columns : out.grad_rows,
                    plan.partial,
                    plan.partial_along};
  const cudaError_t error = loss.both_gradients(p, job, plan.blocks, stream);
  if (error != cudaSuccess) return error;
  const GradientSide streamed{
      job.streamed, job.owner,         columns, plan.blocks, columns ? out.grad_rows : out.grad_columns,
      plan.partial, plan.partial_along};
  return launch_finish_gradient(&streamed, 1, p.dim, p.normalize, stream);
}

// Each side in blocks of its own: two launches, and two more that list what a hinge has left active.
cudaError_t each_side(const Problem& p, const Backward& out, const Launches& loss, const BackwardPlan& plan,
                      cudaStream_t stream) {
  const bool columns_longer = columns_are_longer(p);
  if (loss.hinge) {
    const Side& longer = columns_longer ? p.columns : p.rows;
    cudaError_t error =
        launch_list_active(out.active, longer.count, plan.block_counts, plan.chosen, plan.chosen_count, stream);
    // Items without a gradient are not visited: theirs is zero.
    if (error == cudaSuccess) error = clear(columns_longer ? out.grad_columns : out.grad_rows, longer, p.dim, stream);
    if (error != cudaSuccess) return error;
  }
  const auto items = [&](const Side& side, bool listed) {
    return with_tile_type(p.rows, p.columns, [&](auto number) {
      return items_of<decltype(number)>(side, p.dim, listed ? plan.chosen : nullptr, plan.chosen_count);
    });
  };
  const Items rows = items(p.rows, loss.hinge && !columns_longer);
  const Items columns = items(p.columns, loss.hinge && columns_longer);
  GradientJob job{};
  job.inputs = inputs_of(p, out);
  // Registers leave room for no second block, which might want its share.
  job.resident = with_tile_type(p.rows, p.columns, [&](auto number) {
    return owner_fits<decltype(number), kGradientOwner>(p.dim, sizeof(GradientShared), p.shared_bytes);
  });
  int64_t blocks = 0;
  int sides = 0;
  for (const bool owner_is_row : {true, false}) {
    void* gradient = owner_is_row ? out.grad_rows : out.grad_columns;
    const GradientPlan& side = owner_is_row ? plan.rows : plan.columns;
    if (!gradient) continue;
    job.sides[sides++] = {owner_is_row ? rows : columns,
                          owner_is_row ? columns : rows,
                          owner_is_row,
                          side.slices,
                          gradient,
                          side.partial,
                          side.partial_along};
    blocks += side.owner_tiles * side.slices;
    if (sides == 1) job.first_blocks = blocks;
  }
  if (sides == 0) return cudaSuccess;
  const cudaError_t error = loss.gradients(p, job, blocks, stream);
  if (error != cudaSuccess) return error;
  return launch_finish_gradient(job.sides, sides, p.dim, p.normalize, stream);
}

}  // namespace

bool uses_positives(LossId loss) { return launches_of(loss).uses_positives; }

size_t forward_workspace_bytes(const Problem& problem) {
  return plan_forward(in_whole_groups(problem), launches_of(problem.loss).members, nullptr).bytes;
}

size_t backward_workspace_bytes(const Problem& problem, const Backward& out) {
  return plan_backward(in_whole_groups(problem), out, launches_of(problem.loss).hinge, nullptr).bytes;
}

cudaError_t similarity_loss_forward(const Problem& problem, const Forward& out, void* workspace, cudaStream_t stream) {
  return launches_of(problem.loss).forward(in_whole_groups(problem), out, workspace, stream);
}

cudaError_t similarity_loss_backward(const Problem& problem, const Backward& out, void* workspace,
                                     cudaStream_t stream) {
  const Problem p = in_whole_groups(problem);
  if (!has_gradients(p)) {
    const cudaError_t error = clear(out.grad_rows, p.rows, p.dim, stream);
    return error == cudaSuccess ? clear(out.grad_columns, p.columns, p.dim, stream) : error;
  }
  const Launches loss = launches_of(p.loss);
  const BackwardPlan plan = plan_backward(p, out, loss.hinge, workspace);
  if (loss.uses_positives && !p.positives.counted) {
    const cudaError_t error = loss.count_active(p, stream);
    if (error != cudaSuccess) return error;
  }
  return plan.both ? both_at_once(p, out, loss, plan.of_both, stream) : each_side(p, out, loss, plan, stream);
}

cudaError_t similarity_loss_finish(const SimilarityFinish& job, cudaStream_t stream) {
  return launches_of(job.loss).finish(job, stream);
}

cudaError_t similarity_loss_count(const Problem& problem, cudaStream_t stream) {
  return launches_of(problem.loss).count_active(in_whole_groups(problem), stream);
}

}  // namespace cuda
}  // namespace ccp
