// Proxy-NCA (Movshovitz-Attias et al. 2017) and ProxyNCA++ (Teh et al. 2020): logits l = -d²/temperature,
//   log Σ_{Z} e^l - log Σ_P e^l,  Z = all columns (++) or the negatives alone (original).
#pragma once

#include "losses/cross_entropy.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T, bool plus_plus>
struct ProxyNca : CrossEntropy<T, plus_plus> {
  template <class V>
  using State = typename PosNegLse<T>::template State<V>;
  static constexpr Metric kMetric = Metric::kSquaredDistance;
  static constexpr bool kHinge = false;
  static constexpr bool kUsesPositives = false;
  static constexpr bool kGrouped = false;

  T sharpness;  // 1 / temperature
  explicit ProxyNca(const double* p) : sharpness(T(1 / p[0])) {}

  template <class S, class V, class M>
  CCP_HD auto update(S& state, V x, M same) const {
    const V logit = rounded_product(x, -sharpness);
    this->gather(state, logit, logit, same);
    return x == x;
  }

  template <class V, class M>
  CCP_HD V grad(V x, M same, const V* saved, V pos_weight, V) const {
    return this->logit_grad(rounded_product(x, -sharpness), same, saved) * pos_weight * -sharpness;
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
