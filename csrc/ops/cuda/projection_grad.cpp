#include "kernels/cuda/projection_grad.h"

#include "ops/cuda/stream.h"
#include "ops/projection_grad.h"

namespace ccp {

Tensor projection_grad_cuda_(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                             const std::vector<Tensor>& previous, double lam) {
  CCP_CHECK(!params.empty(), "params: expected at least one CUDA tensor, got none");
  const DeviceGuard guard(params[0], "params[0]");
  ProjectionLists lists = check_projection(grads, params, previous);
  const int64_t count = int64_t(lists.tensors.size());
  const int64_t chunks = cuda::projection_grad_chunks(lists.tensors.data(), count);
  Tensor chunk_sums = empty_like_on(params[0], {chunks}, ScalarType::Double);
  Tensor penalty = empty_like_on(params[0], {}, lists.penalty_dtype);
  CCP_CUDA_CHECK(cuda::projection_grad({lists.tensors.data(), count, lam, chunk_sums.mutable_data_ptr<double>(),
                                        penalty.mutable_data_ptr(), dtype_of(penalty, "penalty")},
                                       current_stream(params[0])));
  write_back(lists);
  return penalty;
}

}  // namespace ccp
