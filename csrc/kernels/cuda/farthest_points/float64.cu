#include "kernels/cuda/farthest_points/launch.cuh"

namespace ccp {
namespace cuda {

cudaError_t k_center::launch_float64(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan,
                                     void* workspace, cudaStream_t stream) {
  return launch<double>(problem, plan, workspace, stream);
}

}  // namespace cuda
}  // namespace ccp
