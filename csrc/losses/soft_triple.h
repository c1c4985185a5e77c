// SoftTriple (Qian et al. 2019, eq. 8) without its regulariser: cross-entropy of the logits scale·(S - margin·1_own),
// S = Σ_k softmax_k(s_k/gamma)·s_k being the similarity to a class's K centres.
#pragma once

#include "losses/margin_softmax.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
struct SoftTriple : MarginSoftmax<T, false> {
  T sharpness;                          // 1 / gamma
  explicit SoftTriple(const double* p)  // scale, gamma, margin
      : MarginSoftmax<T, false>(p[0], p[2]), sharpness(T(1 / p[1])) {}

  // The softmax's terms are e^{(s_k - largest)/gamma}; their sum is at least 1.
  template <class V>
  struct Group {
    V value, largest, sum;
  };
  template <class V, class Members>
  CCP_HD Group<V> group(const Members& s) const {
    V largest = s(0);
    for (int64_t k = 1; k < s.count; ++k) largest = max(s(k), largest);
    V sum{}, below{};
    for (int64_t k = 0; k < s.count; ++k) {
      const V gap = s(k) - largest, term = exp(gap * sharpness);
      sum = sum + term;
      below = below + term * gap;
    }
    return {largest + below / sum, largest, sum};
  }
  template <class V>
  CCP_HD V member_grad(const Group<V>& group, V s, int64_t) const {
    return exp((s - group.largest) * sharpness) / group.sum * (T(1) + (s - group.value) * sharpness);
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
