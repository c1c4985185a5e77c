// What the CPU and the CUDA op share: checking the arguments of nearest_references.
#pragma once

#include "ops/tensor.h"

namespace ccp {

// The shapes, once checked: anchors [M, D]; references [N, D], or proxies [C, K, D] as [C·K, D].
struct NeighborShapes {
  int64_t anchors, references, dim;
};
NeighborShapes check_neighbors(const Tensor& anchors, const Tensor& references, int64_t k, bool exclude_self);

}  // namespace ccp
