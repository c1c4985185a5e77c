// Losses of the form  w⁺·log(1 + Σ_P e^{-a⁺(s - b⁺)}) + w⁻·log(1 + Σ_N e^{a⁻(s - b⁻)}).
#pragma once

#include "losses/pos_neg_lse.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
struct TwoSidedLse : PosNegLse<T> {
  template <class V>
  using State = typename PosNegLse<T>::template State<V>;
  static constexpr Metric kMetric = Metric::kDot;
  static constexpr bool kHinge = false;
  static constexpr bool kUsesPositives = false;
  static constexpr bool kGrouped = false;

  struct Side {
    T sharpness, base, weight;
  };
  Side pos, neg;
  CCP_HD TwoSidedLse(Side pos, Side neg) : pos(pos), neg(neg) {}

  template <class V>
  CCP_HD V pos_logit(V s) const {
    return (pos.base - s) * pos.sharpness;
  }
  template <class V>
  CCP_HD V neg_logit(V s) const {
    return (s - neg.base) * neg.sharpness;
  }

  template <class S, class V, class M>
  CCP_HD auto update(S& state, V s, M same) const {
    this->gather(state, pos_logit(s), neg_logit(s), same);
    return s == s;
  }

  // saved: log(1 + Σ) of each side.
  CCP_HD RowParts finalize(const State<T>& state, int64_t, T* saved) const {
    const double pos_lse = softplus(state.pos.log()), neg_lse = softplus(state.neg.log());
    saved[0] = T(pos_lse);
    saved[1] = T(neg_lse);
    const double has_pos = state.pos.empty() ? 0 : 1, has_neg = state.neg.empty() ? 0 : 1;
    return {pos.weight * pos_lse, neg.weight * neg_lse, has_pos, has_neg, 1, 1};
  }

  template <class V, class M>
  CCP_HD V grad(V s, M same, const V* saved, V pos_weight, V neg_weight) const {
    const V logit = select(same, pos_logit(s) - saved[0], neg_logit(s) - saved[1]);
    const V slope = select(same, pos_weight * (-pos.weight * pos.sharpness), neg_weight * (neg.weight * neg.sharpness));
    return slope * exp(logit);
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
