// The kernels of the loss CCP_LOSS, a name of losses/registry.h.
#pragma once

#include "kernels/cuda/similarity_loss/launch.h"
#include "kernels/cuda/similarity_loss/plan.h"

namespace ccp {
namespace cuda {

template <LossId id>
struct LossOf;
#define CCP_STRIP(...) __VA_ARGS__
#define CCP_LOSS_OF(name, parameters, ...)         \
  template <>                                      \
  struct LossOf<LossId::k_##name> {                \
    template <class T>                             \
    using Struct = generic::CCP_STRIP __VA_ARGS__; \
    using type = Struct<float>;                    \
  };
CCP_FOR_EACH_LOSS(CCP_LOSS_OF)
#undef CCP_LOSS_OF
#undef CCP_STRIP

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

  static ForwardJob forward_job(const Problem& p, const ForwardPlan& plan) {
    const bool resident = owner_fits<kForwardRows>(p.dim, kStageBytes<Loss>);
    return {items_of(p.rows, p.dim),
            items_of(p.columns, p.dim),
            p.dim,
            p.normalize,
            p.exclude_diagonal,
            resident,
            plan.slices,
            p.positives,
            plan.states,
            nullptr,
            p.columns.count >= p.rows.count};
  }

  template <bool kCount>
  static cudaError_t visit_pairs(const Problem& p, const ForwardPlan& plan, const ForwardJob& job,
                                 cudaStream_t stream) {
    const dim3 grid(unsigned(plan.row_tiles * plan.slices));
    const size_t shared = PairTile<kForwardRows>::shared_bytes(p.dim, job.resident) + kStageBytes<Loss>;
    const Loss loss(p.parameters);
    return p.products == Products::kThree
               ? launch(similarity_forward<Loss, Products::kThree, kCount>, grid, shared, stream, job, loss)
               : launch(similarity_forward<Loss, Products::kOne, kCount>, grid, shared, stream, job, loss);
  }

  static cudaError_t forward(const Problem& p, const Forward& out, void* workspace, cudaStream_t stream) {
    const ForwardPlan plan = plan_forward(p, kMembers<State>, workspace);
    const int64_t longer = p.columns.count >= p.rows.count ? p.columns.count : p.rows.count;
    cudaError_t error = cudaMemsetAsync(out.active, Loss::kHinge ? 0 : 1, size_t(longer), stream);
    if (error == cudaSuccess) error = cudaMemsetAsync(plan.blocks_done, 0, sizeof(unsigned), stream);
    if (error != cudaSuccess) return error;
    ForwardJob job = forward_job(p, plan);
    job.active = out.active;
    if (plan.row_tiles > 0) {
      error = visit_pairs<false>(p, plan, job, stream);
      if (error != cudaSuccess) return error;
    }
    if (out.only_states && p.rows.count == 0) return cudaSuccess;
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
      const ForwardPlan plan = plan_forward(p, kMembers<State>, nullptr);
      if (plan.row_tiles > 0) return visit_pairs<true>(p, plan, forward_job(p, plan), stream);
    }
    return cudaSuccess;
  }

  static cudaError_t gradient(const Problem& p, const GradientJob& job, cudaStream_t stream) {
    const int64_t owner_tiles = divide_up(positions_of(job.owner.side), kGradientOwner);
    const Loss loss(p.parameters);
    const size_t shared = PairTile<kGradientOwner>::shared_bytes(p.dim, job.resident) + sizeof(GradientShared);
    const dim3 grid(unsigned(owner_tiles * job.slices), unsigned(p.dim > kMostDims ? divide_up(p.dim, kMostDims) : 1));
    const auto with = [&](auto kernel) { return launch(kernel, grid, shared, stream, job, loss); };
    const bool precise = p.products == Products::kThree;
    if (p.dim <= 128)
      return precise ? with(similarity_gradient<Loss, Products::kThree, 128>)
                     : with(similarity_gradient<Loss, Products::kOne, 128>);
    return precise ? with(similarity_gradient<Loss, Products::kThree, kMostDims>)
                   : with(similarity_gradient<Loss, Products::kOne, kMostDims>);
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
          &Of::gradient};
}

}  // namespace cuda
}  // namespace ccp
