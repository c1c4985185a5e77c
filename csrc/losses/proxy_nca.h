// Proxy-NCA (Movshovitz-Attias et al. 2017) and ProxyNCA++ (Teh et al. 2020): logits l = -d²/temperature,
//   log Σ_{Z} e^l - log Σ_P e^l,  Z = all columns (++) or the negatives alone (original; may be negative).
// A row without positives, or in the original without negatives, adds nothing.
#pragma once

#include "losses/loss.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T, bool plus_plus>
struct ProxyNca {
  static constexpr Metric kMetric = Metric::kSquaredDistance;
  static constexpr bool kHinge = false;
  static constexpr bool kUsesPositives = false;

  T sharpness;  // 1 / temperature
  explicit ProxyNca(const double* p) : sharpness(T(1 / p[0])) {}

  template <class V>
  struct State {
    LogSumExp<V, T> pos, neg;
  };
  template <class V>
  CCP_HD void init(State<V>& state) const {
    state.pos.init();
    state.neg.init();
  }

  template <class V, class M>
  CCP_HD M update(State<V>& state, V x, M same) const {
    const V logit = x * -sharpness;
    if (any(same)) state.pos.add(logit, same);
    state.neg.add(logit, !same);
    return x == x;
  }

  template <class V>
  CCP_HD void merge(State<V>& a, const State<V>& b) const {
    a.pos.merge(b.pos);
    a.neg.merge(b.neg);
  }

  // saved: the log-sum-exp of the positives and of the denominator; +inf for a row that adds nothing, so that every
  // probability computed from it is zero.
  CCP_HD RowParts finalize(const State<T>& state, int64_t, T* saved) const {
    if (state.pos.empty() || (!plus_plus && state.neg.empty())) {
      saved[0] = saved[1] = T(__builtin_inf());
      return {0, 0, 0, 0, 1, 0};
    }
    LogSumExp<double, double> denominator{double(state.neg.max_term), double(state.neg.sum)};
    if (plus_plus) denominator.merge({double(state.pos.max_term), double(state.pos.sum)});
    const double pos_lse = state.pos.log(), all_lse = denominator.log();
    saved[0] = T(pos_lse);
    saved[1] = T(all_lse);
    return {all_lse - pos_lse, 0, 1, 0, 1, 0};
  }

  template <class V, class M>
  CCP_HD V grad(V x, M same, const V* saved, V pos_weight, V) const {
    const V logit = x * -sharpness;
    V toward = select(same, V{}, exp(logit - saved[1]));
    if (any(same)) {
      V pull = exp(logit - saved[0]);
      if (plus_plus) pull = pull - exp(logit - saved[1]);
      toward = select(same, V{} - pull, toward);
    }
    return toward * pos_weight * -sharpness;
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
