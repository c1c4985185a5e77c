// Contrastive loss with two margins (Hadsell et al. 2006); arXiv 2209.09060 calls the cosine C1 and l2 C2.
//   l2:      Σ_P (d - pos_margin)₊ + Σ_N (neg_margin - d)₊
//   cosine:  Σ_P (1 - s - pos_margin)₊ + Σ_N (s - neg_margin)₊
#pragma once

#include "losses/loss.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T, Metric metric>
struct Contrastive {
  static constexpr Metric kMetric = metric;
  static constexpr bool kHinge = true;
  static constexpr bool kUsesPositives = false;
  static constexpr bool kGrouped = false;

  T pos_margin, neg_margin;
  explicit Contrastive(const double* p) : pos_margin(T(p[0])), neg_margin(T(p[1])) {}

  template <class V>
  struct State {
    V pos, neg, pos_active, neg_active;
  };
  template <class V>
  CCP_HD void init(State<V>& state) const {
    state = State<V>{};
  }

  // The hinge's argument. A NaN counts as active, so that it is not swallowed.
  template <class V, class M>
  CCP_HD V excess(V x, M same) const {
    if (kMetric == Metric::kDot) return select(same, (T(1) - pos_margin) - x, x - neg_margin);
    return select(same, x - pos_margin, neg_margin - x);
  }

  template <class V, class M>
  CCP_HD auto update(State<V>& state, V x, M same) const {
    const V t = excess(x, same);
    const auto active = !(t <= T(0));
    if (any(active)) {
      const V term = select(active, t, V{});
      const V one = select(active, V{} + T(1), V{});
      state.pos = state.pos + select(same, term, V{});
      state.neg = state.neg + select(same, V{}, term);
      state.pos_active = state.pos_active + select(same, one, V{});
      state.neg_active = state.neg_active + select(same, V{}, one);
    }
    return active;
  }

  template <class V>
  CCP_HD void merge(State<V>& a, const State<V>& b) const {
    a.pos = a.pos + b.pos;
    a.neg = a.neg + b.neg;
    a.pos_active = a.pos_active + b.pos_active;
    a.neg_active = a.neg_active + b.neg_active;
  }

  CCP_HD RowParts finalize(const State<T>& s, int64_t columns, T*) const {
    return {s.pos, s.neg, s.pos_active, s.neg_active, double(columns), double(columns)};
  }

  template <class V, class M>
  CCP_HD V grad(V x, M same, const V*, V pos_weight, V neg_weight) const {
    const V slope = kMetric == Metric::kDot ? select(same, V{} - pos_weight, neg_weight)
                                            : select(same, pos_weight, V{} - neg_weight);
    return select(!(excess(x, same) <= T(0)), slope, V{});
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
