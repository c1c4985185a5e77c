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
  cudaError_t (*gradient)(const Problem& problem, const struct GradientJob& job, cudaStream_t stream);
};

template <LossId id>
Launches launches();

}  // namespace cuda
}  // namespace ccp
