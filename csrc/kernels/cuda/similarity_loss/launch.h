// The launches of one loss, instantiated for each line of losses/registry.h in a translation unit of its own
// (cmake/LossInstances.cmake), and chosen by id in similarity_loss.cu.
#pragma once

#include "kernels/cuda/similarity_loss.h"

namespace ccp {
namespace cuda {

struct Launches {
  int members;  // floats of a row's state
  bool hinge, uses_positives, grouped;
  cudaError_t (*forward)(const Problem& problem, const Forward& out, void* workspace, cudaStream_t stream);
  cudaError_t (*finish)(const SimilarityFinish& job, cudaStream_t stream);
  cudaError_t (*count_active)(const Problem& problem, cudaStream_t stream);
  // sides[0] and sides[1] in one launch; the latter has no blocks if it is not wanted.
  cudaError_t (*gradients)(const Problem& problem, const struct GradientJob& job, int64_t blocks, cudaStream_t stream);
  cudaError_t (*both_gradients)(const Problem& problem, const struct BothJob& job, int64_t blocks, cudaStream_t stream);
};

template <LossId id>
Launches launches();

// The forward kernel for Hopper (hopper/forward.cuh), where hopper::taken() says so.
template <LossId id>
cudaError_t launch_hopper_forward(const Problem& problem, const struct ForwardJob& job, int64_t blocks,
                                  cudaStream_t stream);

}  // namespace cuda
}  // namespace ccp
