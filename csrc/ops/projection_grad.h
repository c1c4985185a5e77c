// What the CPU and the CUDA op share: checking the lists, and finding where each tensor's numbers lie.
#pragma once

#include <utility>
#include <vector>

#include "kernels/cpu/projection_grad.h"  // ProjectionTensor
#include "ops/tensor.h"

namespace ccp {

struct ProjectionLists {
  std::vector<ProjectionTensor> tensors;
  ScalarType penalty_dtype;                             // float64 if a parameter is, else float32
  std::vector<Tensor> copies;                           // of what is laid out unlike its parameter, for the kernel
  std::vector<std::pair<Tensor, Tensor>> written_back;  // gradient, and the copy that gets its new value
};

// All tensors must be on the first parameter's device. grads belong to the leading params.
ProjectionLists check_projection(const std::vector<Tensor>& grads, const std::vector<Tensor>& params,
                                 const std::vector<Tensor>& previous);

// After the kernel.
void write_back(ProjectionLists& lists);

}  // namespace ccp
