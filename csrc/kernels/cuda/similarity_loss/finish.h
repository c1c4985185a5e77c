// Small launches around the gradient kernel that do not depend on the loss.
#pragma once

#include "kernels/cuda/similarity_loss/gradient.cuh"

namespace ccp {
namespace cuda {

// Where blocks left parts (GradientJob::partial): adds them up in order, and goes on to the original vectors.
cudaError_t launch_finish_gradient(const GradientJob& job, cudaStream_t stream);

// chosen[0 .. *count) = the positions of the flags that are not zero, in order.
cudaError_t launch_list_active(const uint8_t* flags, int64_t n, int64_t* chosen, int64_t* count, cudaStream_t stream);

}  // namespace cuda
}  // namespace ccp
