// The launches for one element type of points, in a translation unit of its own: float32.cu, ...
#pragma once

#include "kernels/cuda/farthest_points.h"

namespace ccp {
namespace cuda {
namespace k_center {

using Launch = cudaError_t(const FarthestPointsProblem& problem, const FarthestPointsPlan& plan, void* workspace,
                           cudaStream_t stream);
Launch launch_float32, launch_float64, launch_bfloat16, launch_float16;

}  // namespace k_center
}  // namespace cuda
}  // namespace ccp
