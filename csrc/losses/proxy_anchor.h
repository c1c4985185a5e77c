// Proxy-Anchor loss (Kim et al. 2020, eq. 4); the rows are the proxies:
//   Σ_{p with positives} log(1 + Σ_P e^{-alpha(s - margin)}) / |P⁺|  +  Σ_p log(1 + Σ_N e^{alpha(s + margin)}) / |P|
#pragma once

#include "losses/two_sided_lse.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
struct ProxyAnchor : TwoSidedLse<T> {
  explicit ProxyAnchor(const double* p)  // alpha, margin
      : TwoSidedLse<T>({T(p[0]), T(p[1]), T(1)}, {T(p[0]), T(-p[1]), T(1)}) {}

  CCP_HD RowParts finalize(const typename TwoSidedLse<T>::template State<T>& state, int64_t columns, T* saved) const {
    RowParts parts = TwoSidedLse<T>::finalize(state, columns, saved);
    parts.pos_entries = parts.pos_active;  // |P⁺|: the proxies that have positives
    return parts;
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
