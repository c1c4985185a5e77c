// What the CPU and the CUDA op share.
#pragma once

#include "losses/loss.h"  // kMostMembers
#include "ops/describe.h"
#include "ops/tensor.h"

namespace ccp {

inline void check_centres(const Tensor& proxies) {
  CCP_CHECK(proxies.dim() == 3 && proxies.size(1) <= kMostMembers, "proxies: expected shape [C, K, D] with K at most ",
            kMostMembers, ", got ", shape_of(proxies));
}

inline void check_spread_gradient(const Tensor& grad, const Tensor& proxies) {
  const ScalarType own = proxies.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  CCP_CHECK(grad.numel() == 1 && grad.scalar_type() == own, "grad: expected one number of the value's dtype");
}

}  // namespace ccp
