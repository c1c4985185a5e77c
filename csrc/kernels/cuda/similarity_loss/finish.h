// Small launches around the gradient kernels that do not depend on the loss.
#pragma once

#include "kernels/cuda/similarity_loss/gradient.cuh"

namespace ccp {
namespace cuda {

// Of up to two sides, those where blocks left parts (GradientSide::partial): adds them up in order, and goes on to the
// original vectors. One launch, or none.
cudaError_t launch_finish_gradient(const GradientSide* sides, int count, int64_t dim, Normalize normalize,
                                   cudaStream_t stream);

// chosen[0 .. *count) = the positions of the flags that are not zero, in order. `block_counts` has list_blocks(n)
// places.
int64_t list_blocks(int64_t n);
cudaError_t launch_list_active(const uint8_t* flags, int64_t n, int64_t* block_counts, int64_t* chosen, int64_t* count,
                               cudaStream_t stream);

}  // namespace cuda
}  // namespace ccp
