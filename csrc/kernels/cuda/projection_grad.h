// The proximal gradient over a whole list of parameters on the GPU: grad += lam · (param − previous), and the penalty
// lam/2 · Σ‖param − previous‖². kernels/cpu/projection_grad.h says how numbers are rounded and in which order the sum
// is taken; gradients and penalty are equal to the CPU's bit for bit.
#pragma once

#include <cstdint>

#include "common/cuda.h"
#include "kernels/cpu/projection_grad.h"  // ProjectionTensor

namespace ccp {
namespace cuda {

struct ProjectionGrad {
  const ProjectionTensor* tensors;  // [count], on the host; what they point to is on the device
  int64_t count;
  double lam;
  double* chunk_sums;   // [projection_grad_chunks], scratch
  void* penalty;        // [1]
  Dtype penalty_dtype;  // float32 or float64
};

int64_t projection_grad_chunks(const ProjectionTensor* tensors, int64_t count);

// One launch for as many tensors as a launch's arguments describe (hundreds, of any size), then one that adds up the
// chunks' sums. Nothing waits for the GPU; `tensors` may go once this returns.
cudaError_t projection_grad(const ProjectionGrad& problem, cudaStream_t stream);

}  // namespace cuda
}  // namespace ccp
