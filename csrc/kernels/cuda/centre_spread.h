// kernels/centre_spread.h on the GPU: a warp for each class, or for each centre's gradient.
#pragma once

#include "common/cuda.h"
#include "common/dtype.h"
#include "kernels/centre_spread.h"

namespace ccp {
namespace cuda {

struct CentreSpread {
  const void* centres;  // [classes, size, dim]: float32, bfloat16 or float16
  Dtype dtype;
  int64_t classes, size, dim;  // size at most kWarp
};

// Sums that the blocks leave for one to add up: scratch[centre_spread_blocks].
int64_t centre_spread_blocks(const CentreSpread& problem);

cudaError_t centre_spread(const CentreSpread& problem, double* scratch, float* value, cudaStream_t stream);
// gradient [classes, size, dim] like the centres: *grad times that of the value.
cudaError_t centre_spread_backward(const CentreSpread& problem, const float* grad, void* gradient, cudaStream_t stream);

}  // namespace cuda
}  // namespace ccp
