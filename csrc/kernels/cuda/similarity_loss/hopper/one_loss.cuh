// The kernel of the loss CCP_LOSS for Hopper, compiled for that architecture alone.
#pragma once

#include "kernels/cuda/similarity_loss/hopper/forward.cuh"
#include "kernels/cuda/similarity_loss/launch.h"
#include "kernels/cuda/similarity_loss/loss_of.h"
#include "kernels/cuda/tensor_map.h"

namespace ccp {
namespace cuda {

template <>
cudaError_t launch_hopper_forward<LossId::CCP_LOSS>(const Problem& p, const ForwardJob& job, int64_t blocks,
                                                    cudaStream_t stream) {
  using Loss = LossOf<LossId::CCP_LOSS>::type;
  hopper::Maps maps;
  cudaError_t error = make_tensor_map(p.rows.data, p.rows.count, p.dim, kSpan, &maps.rows);
  if (error == cudaSuccess) error = make_tensor_map(p.columns.data, p.columns.count, p.dim, kSpan, &maps.columns);
  if (error != cudaSuccess) return error;
  const int stages = hopper::stages_for(p.dim, p.shared_bytes);
  const size_t shared = hopper::shared_bytes(p.dim, stages);
  error = allow_shared_memory(hopper::similarity_forward<Loss>, shared);
  if (error != cudaSuccess) return error;
  CCP_LAUNCH(hopper::similarity_forward<Loss>, dim3(unsigned(blocks)), dim3(hopper::kAllThreads), shared, stream, job,
             maps, Loss(p.parameters), stages);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace ccp
