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

bool columns_are_longer(const Problem& p) { return p.columns.count >= p.rows.count; }

// Items without a gradient are not visited: theirs is zero.
cudaError_t clear_longer_side(const Problem& p, const Backward& out, cudaStream_t stream) {
  void* gradient = columns_are_longer(p) ? out.grad_columns : out.grad_rows;
  const Side& side = columns_are_longer(p) ? p.columns : p.rows;
  if (!gradient || side.count * p.dim == 0) return cudaSuccess;
  return cudaMemsetAsync(gradient, 0, size_t(side.count * p.dim * dtype_bytes(side.dtype)), stream);
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
  const Launches loss = launches_of(p.loss);
  const BackwardPlan plan = plan_backward(p, out, loss.hinge, workspace);
  cudaError_t error = cudaSuccess;
  if (loss.hinge) {
    const int64_t longer = columns_are_longer(p) ? p.columns.count : p.rows.count;
    error = launch_list_active(out.active, longer, plan.chosen, plan.chosen_count, stream);
    if (error == cudaSuccess) error = clear_longer_side(p, out, stream);
  }
  if (error == cudaSuccess && loss.uses_positives && !p.positives.counted) error = loss.count_active(p, stream);

  const bool choose_columns = loss.hinge && columns_are_longer(p), choose_rows = loss.hinge && !choose_columns;
  const Items rows = items_of(p.rows, p.dim, choose_rows ? plan.chosen : nullptr, plan.chosen_count);
  const Items columns = items_of(p.columns, p.dim, choose_columns ? plan.chosen : nullptr, plan.chosen_count);
  const bool resident = owner_fits<kGradientOwner>(p.dim, sizeof(GradientShared));
  for (const bool owner_is_row : {true, false}) {
    void* gradient = owner_is_row ? out.grad_rows : out.grad_columns;
    const GradientPlan& side = owner_is_row ? plan.rows : plan.columns;
    if (error != cudaSuccess || !gradient || side.owner_tiles == 0) continue;
    const GradientJob job{owner_is_row ? rows : columns,
                          owner_is_row ? columns : rows,
                          owner_is_row,
                          p.dim,
                          p.normalize,
                          p.exclude_diagonal,
                          resident,
                          side.slices,
                          p.positives,
                          p.rows.count,
                          out.reduction,
                          out.grad_loss,
                          out.row_state,
                          out.normalizer,
                          gradient,
                          side.partial,
                          side.partial_along};
    error = loss.gradient(p, job, stream);
    if (error == cudaSuccess && side.partial) error = launch_finish_gradient(job, stream);
  }
  return error;
}

cudaError_t similarity_loss_finish(const SimilarityFinish& job, cudaStream_t stream) {
  return launches_of(job.loss).finish(job, stream);
}

cudaError_t similarity_loss_count(const Problem& problem, cudaStream_t stream) {
  return launches_of(problem.loss).count_active(in_whole_groups(problem), stream);
}

}  // namespace cuda
}  // namespace ccp
