// The kernels of the loss CCP_LOSS, a name of losses/registry.h.
#pragma once

#include "kernels/cuda/similarity_loss/launch.h"
#include "kernels/cuda/similarity_loss/loss_of.h"
#include "kernels/cuda/similarity_loss/plan.h"

namespace ccp {
namespace cuda {

template <class Kernel, class Job, class Loss>
cudaError_t launch(Kernel kernel, dim3 grid, size_t shared, cudaStream_t stream, const Job& job, const Loss& loss) {
  const cudaError_t error = allow_shared_memory(kernel, shared);
  if (error != cudaSuccess) return error;
  CCP_LAUNCH(kernel, grid, dim3(kThreads), shared, stream, job, loss);
  return cudaGetLastError();
}

template <class Loss>
struct LossLaunches {
  using State = typename Loss::template State<float>;

  template <class T>
  static ForwardJob forward_job(const Problem& p, const ForwardPlan& plan) {
    ForwardJob job{};
    job.rows = items_of<T>(p.rows, p.dim);
    job.columns = items_of<T>(p.columns, p.dim);
    job.dim = p.dim;
    job.normalize = p.normalize;
    job.arithmetic = {p.products, p.rows.dtype};
    job.exclude_diagonal = p.exclude_diagonal;
    job.resident = owner_fits<T, kForwardRows>(p.dim, kStageBytes<Loss>);
    job.slices = plan.slices;
    job.positives = p.positives;
    job.states = plan.states;
    job.blocks_done = plan.blocks_done;
    job.active_columns = columns_are_longer(p);
    job.clear_active = (job.active_columns ? plan.row_tiles : plan.slices) == 1;
    return job;
  }

  template <bool kCount>
  static cudaError_t visit_pairs(const Problem& p, const ForwardPlan& plan, uint8_t* active, cudaStream_t stream) {
    return with_tile_type(p.rows, p.columns, [&](auto number) {
      using T = decltype(number);
      ForwardJob job = forward_job<T>(p, plan);
      job.active = active;
      if (!kCount && Loss::kHinge && !job.clear_active) {
        const int64_t longer = job.active_columns ? p.columns.count : p.rows.count;
        const cudaError_t error = cudaMemsetAsync(active, 0, size_t(longer), stream);
        if (error != cudaSuccess) return error;
      }
      const int64_t blocks = plan.row_tiles * plan.slices;
#if defined(CCP_HAVE_HOPPER)
      if (!kCount && hopper::taken(p)) return launch_hopper_forward<LossId::CCP_LOSS>(p, job, blocks, stream);
#endif
      const dim3 grid{unsigned(blocks)};
      const size_t shared = PairTile<T, kForwardRows>::shared_bytes(p.dim, job.resident) + kStageBytes<Loss>;
      return launch(similarity_forward<Loss, T, kCount>, grid, shared, stream, job, Loss(p.parameters));
    });
  }

  // Whether a row without columns has no loss: of most losses it has none.
  static bool is_nothing(const Problem& p) {
    const Loss loss(p.parameters);
    State state;
    loss.init(state);
    float saved[kSaved] = {};
    const generic::RowParts parts = loss.finalize(state, 0, saved);
    return parts.pos == 0 && parts.neg == 0;
  }

  // There is no pair, and no row has a loss: backward reads nothing of this but zeros.
  static cudaError_t clear(const Problem& p, const Forward& out, cudaStream_t stream) {
    const int64_t rows = p.rows.count, values = out.reduction == Reduction::kNone ? rows : 1;
    cudaError_t error = clear_memory(out.active, rows > p.columns.count ? rows : p.columns.count, stream);
    if (error != cudaSuccess || out.only_states) return error;
    error = clear_memory(out.loss, sizeof(float) * values, stream);
    if (error == cudaSuccess) error = clear_memory(out.row_state, sizeof(float) * kSaved * rows, stream);
    return error == cudaSuccess ? clear_memory(out.normalizer, sizeof(double) * 2, stream) : error;
  }

  static cudaError_t forward(const Problem& p, const Forward& out, void* workspace, cudaStream_t stream) {
    if (p.rows.count == 0 || (p.columns.count == 0 && !out.only_states && is_nothing(p))) return clear(p, out, stream);
    const ForwardPlan plan = plan_forward(p, kMembers<State>, workspace);
    const cudaError_t error = visit_pairs<false>(p, plan, out.active, stream);
    if (error != cudaSuccess) return error;
    const ReduceJob reduce{plan.states,
                           plan.slices,
                           p.rows.count,
                           p.columns.count,
                           out.reduction,
                           out.loss,
                           out.row_state,
                           out.normalizer,
                           plan.block_parts,
                           plan.blocks_done,
                           out.only_states ? out.states : nullptr,
                           nullptr};
    return launch_reduce(reduce, plan.reduce_blocks, p.parameters, stream);
  }

  static cudaError_t finish(const SimilarityFinish& job, cudaStream_t stream) {
    if (job.rows == 0) return cudaSuccess;
    const ReduceJob reduce{
        static_cast<const float*>(job.states), job.parts, job.rows, job.columns, Reduction::kSum, nullptr,
        static_cast<float*>(job.row_state),    nullptr,   nullptr,  nullptr,     nullptr,         job.row_parts};
    return launch_reduce(reduce, reduce_blocks(job.rows), job.parameters, stream);
  }

  static cudaError_t launch_reduce(const ReduceJob& job, int64_t blocks, const double* parameters,
                                   cudaStream_t stream) {
    return launch(similarity_reduce<Loss>, dim3(unsigned(blocks)), kThreads * sizeof(generic::RowParts), stream, job,
                  Loss(parameters));
  }

  static cudaError_t count_active(const Problem& p, cudaStream_t stream) {
    if constexpr (Loss::kUsesPositives) {
      if (has_pairs(p)) return visit_pairs<true>(p, plan_forward(p, kMembers<State>, nullptr), nullptr, stream);
    }
    return cudaSuccess;
  }

  static cudaError_t gradients(const Problem& p, const GradientJob& job, int64_t blocks, cudaStream_t stream) {
    return with_tile_type(p.rows, p.columns, [&](auto number) {
      using T = decltype(number);
      const size_t shared = PairTile<T, kGradientOwner>::shared_bytes(p.dim, job.resident) + sizeof(GradientShared);
      const dim3 grid(unsigned(blocks), unsigned(dim_blocks(p.dim)));
      const Loss loss(p.parameters);
      return p.dim <= 128 ? launch(similarity_gradient<Loss, T, 128>, grid, shared, stream, job, loss)
                          : launch(similarity_gradient<Loss, T, kMostDims>, grid, shared, stream, job, loss);
    });
  }

  static cudaError_t both_gradients(const Problem& p, const BothJob& job, int64_t blocks, cudaStream_t stream) {
    return with_tile_type(p.rows, p.columns, [&](auto number) {
      using T = decltype(number);
      return launch(similarity_both_gradients<Loss, T>, dim3(unsigned(blocks)),
                    both_shared_bytes<T>(job.streamed.side, p.dim), stream, job, Loss(p.parameters));
    });
  }
};

template <>
Launches launches<LossId::CCP_LOSS>() {
  using Loss = LossOf<LossId::CCP_LOSS>::type;
  using Of = LossLaunches<Loss>;
  return {kMembers<typename Of::State>,
          Loss::kHinge,
          Loss::kUsesPositives,
          Loss::kGrouped,
          &Of::forward,
          &Of::finish,
          &Of::count_active,
          &Of::gradients,
          &Of::both_gradients};
}

}  // namespace cuda
}  // namespace ccp
