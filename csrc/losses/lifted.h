// Lifted structure (Oh Song et al. 2016, eq. 4) in its form per anchor (Hermans et al. 2017, eq. 8), and the part of
// the form per pair that goes over negatives; ccp_fast/ops/lifted_pairs.py has the other. d is a distance.
#pragma once

#include "losses/pos_neg_lse.h"

namespace ccp {
namespace CCP_CAPABILITY {

// (log Σ_P e^d + log Σ_N e^{margin - d})₊, a logarithm of an empty sum counting as 0.
template <class T>
struct LiftedAnchor : PosNegLse<T> {
  template <class V>
  using State = typename PosNegLse<T>::template State<V>;
  static constexpr Metric kMetric = Metric::kDistance;
  static constexpr bool kHinge = false;
  static constexpr bool kUsesPositives = false;
  static constexpr bool kGrouped = false;

  T margin;
  explicit LiftedAnchor(const double* p) : margin(T(p[0])) {}

  template <class S, class V, class M>
  CCP_HD auto update(S& state, V d, M same) const {
    this->gather(state, d, margin - d, same);
    return d == d;
  }

  // saved: both logarithms; +inf for a row below the hinge, so that every weight computed from it is zero.
  CCP_HD RowParts finalize(const State<T>& state, int64_t, T* saved) const {
    const double pos_lse = state.pos.empty() ? 0 : state.pos.log(), neg_lse = state.neg.empty() ? 0 : state.neg.log();
    const double value = pos_lse + neg_lse;
    if (value <= 0) {
      saved[0] = saved[1] = T(__builtin_inf());
      return {0, 0, 0, 0, 1, 0};
    }
    saved[0] = T(pos_lse);
    saved[1] = T(neg_lse);
    return {value, 0, 1, 0, 1, 0};
  }

  template <class V, class M>
  CCP_HD V grad(V d, M same, const V* saved, V weight, V) const {
    const V share = exp(select(same, d - saved[0], margin - d - saved[1]));
    return select(same, weight, V{} - weight) * share;
  }
};

// log Σ_N e^{margin - d}; a row without negatives gives a number so low that it never matters beside another.
template <class T>
struct NegativeLse {
  static constexpr Metric kMetric = Metric::kDistance;
  static constexpr bool kHinge = false;
  static constexpr bool kUsesPositives = false;
  static constexpr bool kGrouped = false;
  static constexpr double kEmpty = -1e30;

  T margin;
  explicit NegativeLse(const double* p) : margin(T(p[0])) {}

  template <class V>
  struct State {
    LogSumExp<V, T> neg;
  };
  template <class V>
  struct Maxima {
    LargestTerm<V, T> neg;
  };
  template <class S>
  CCP_HD void init(S& state) const {
    state.neg.init();
  }
  template <class V>
  CCP_HD void start(State<V>& state, const Maxima<V>& maxima) const {
    state = {maxima.neg.start()};
  }

  template <class S, class V, class M>
  CCP_HD auto update(S& state, V d, M same) const {
    state.neg.add(margin - d, !same);
    return d == d;
  }

  template <class V>
  CCP_HD void merge(State<V>& a, const State<V>& b) const {
    a.neg.merge(b.neg);
  }

  CCP_HD RowParts finalize(const State<T>& state, int64_t, T* saved) const {
    const double lse = state.neg.empty() ? kEmpty : state.neg.log();
    saved[0] = T(lse);
    saved[1] = T(0);
    return {0, lse, 0, 1, 0, 1};
  }

  template <class V, class M>
  CCP_HD V grad(V d, M same, const V* saved, V, V weight) const {
    return select(same, V{}, V{} - weight * exp(margin - d - saved[0]));
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
