// Multi-Similarity loss (Wang et al. 2019, eq. 15 without pair mining):
//   (1/alpha)·log(1 + Σ_P e^{-alpha(s - base)}) + (1/beta)·log(1 + Σ_N e^{beta(s - base)})
#pragma once

#include "losses/two_sided_lse.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
struct MultiSimilarity : TwoSidedLse<T> {
  explicit MultiSimilarity(const double* p)  // alpha, beta, base
      : TwoSidedLse<T>({T(p[0]), T(p[2]), T(1 / p[0])}, {T(p[1]), T(p[2]), T(1 / p[1])}) {}
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
