#include "kernels/cuda/farthest_points/launch.cuh"

namespace ccp {
namespace cuda {

cudaError_t k_center::launch_float16(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan,
                                     void* workspace, cudaStream_t stream) {
  return launch<Float16>(problem, plan, workspace, stream);
}

}  // namespace cuda
}  // namespace ccp
