#include "kernels/cpu/projection_grad.h"

#include "ops/ops.h"
#include "ops/projection_grad.h"

namespace ccp {

Tensor projection_grad_cpu_(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                            const std::vector<Tensor>& previous, double lam) {
  CCP_CHECK(params.empty() || params[0].is_cpu(), "params[0]: expected a CPU tensor");
  ProjectionLists lists = check_projection(grads, params, previous);
  const double squares =
      CCP_CPU_KERNEL(projection_grad)({lists.tensors.data(), int64_t(lists.tensors.size()), lam, torch_parallel_for()});
  write_back(lists);
  Tensor penalty = empty_like_on(params[0], {}, lists.penalty_dtype);
  if (lists.penalty_dtype == ScalarType::Double)
    *penalty.mutable_data_ptr<double>() = 0.5 * lam * squares;
  else
    *penalty.mutable_data_ptr<float>() = float(0.5 * lam * squares);
  return penalty;
}

}  // namespace ccp
