// The gradient of the proximal term lam/2 · Σ‖w − w_prev‖² over a whole list of parameters, in one pass over memory:
// grad += lam · (param − previous), and the sum Σ‖param − previous‖² while the numbers are at hand.
//
// Float arithmetic, or double for a tensor of which any of the three is float64; each operation is rounded by itself.
// The sum is taken in double, chunk by chunk in an order fixed by the sizes alone, so that it does not depend on the
// number of threads.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"
#include "kernels/cpu/capability.h"

namespace ccp {

// One parameter; the three arrays lie in memory alike. grad may be param itself (a step instead of a gradient).
struct ProjectionTensor {
  void* grad;            // [numel]; nullptr: counts in the sum alone
  const void* param;     // [numel]
  const void* previous;  // [numel]
  Dtype grad_dtype, param_dtype, previous_dtype;
  int64_t numel;
};

struct ProjectionGradProblem {
  const ProjectionTensor* tensors;
  int64_t count;
  double lam;
  ParallelFor parallel_for;
};

}  // namespace ccp

// Returns Σ‖param − previous‖².
CCP_DECLARE_CPU_KERNEL(double, projection_grad, (const ProjectionGradProblem& problem))
