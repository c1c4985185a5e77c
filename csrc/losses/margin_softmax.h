// Softmax over classes with a margin on the row's own: cross-entropy of the logits scale·t(s), s being the similarity
// of the class's best centre and, for the row's own class,
//   CosFace (Wang et al. 2018, eq. 4):  t = s - margin; without a margin the normalised softmax
//   ArcFace (Deng et al. 2019, eq. 3):  t = cos(θ + margin) where θ + margin <= π, else s - margin·sin(margin)
// and t = s for all others.
#pragma once

#include "losses/cross_entropy.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T, bool arc>
struct MarginSoftmax : CrossEntropy<T, true> {
  template <class V>
  using State = typename PosNegLse<T>::template State<V>;
  static constexpr Metric kMetric = Metric::kDot;
  static constexpr bool kHinge = false;
  static constexpr bool kUsesPositives = false;
  static constexpr bool kGrouped = true;

  T scale, margin, cos_margin, sin_margin;
  MarginSoftmax(double scale, double margin)
      : scale(T(scale)), margin(T(margin)), cos_margin(T(::cos(margin))), sin_margin(T(::sin(margin))) {}
  explicit MarginSoftmax(const double* p) : MarginSoftmax(p[0], p[1]) {}

  // The class's best centre, the first one of several. A NaN is the best.
  template <class V>
  struct Group {
    V value, best;
  };
  template <class V, class Members>
  CCP_HD Group<V> group(const Members& s) const {
    Group<V> group{s(0), V{}};
    for (int64_t k = 1; k < s.count; ++k) {
      const V x = s(k);
      const auto better = (x > group.value) | !(x == x);
      group.value = select(better, x, group.value);
      group.best = select(better, V{} + T(k), group.best);
    }
    return group;
  }
  template <class V>
  CCP_HD V member_grad(const Group<V>& group, V, int64_t k) const {
    return select(group.best == V{} + T(k), V{} + T(1), V{});
  }

  // ArcFace without acos: cos(θ + m) = cos θ · cos m - sin θ · sin m.
  template <class V>
  CCP_HD V sine(V s) const {
    return sqrt(max(V{}, T(1) - s * s));  // rounding may carry |s| past 1
  }
  template <class V>
  CCP_HD V target(V s) const {
    if (!arc) return s - margin;
    return select(s < -cos_margin, s - margin * sin_margin, s * cos_margin - sine(s) * sin_margin);
  }
  // d target / d s. At θ = 0 there is no direction in which θ grows, and so no gradient of sin θ.
  template <class V>
  CCP_HD V target_grad(V s) const {
    if (!arc) return V{} + T(1);
    const V sin_s = sine(s);
    const V slope = cos_margin + select(sin_s > T(0), s / sin_s, V{}) * sin_margin;
    return select(s < -cos_margin, V{} + T(1), slope);
  }

  template <class V, class M>
  CCP_HD V logit(V s, M same) const {
    return rounded_product(any(same) ? select(same, target(s), s) : s, scale);
  }

  template <class S, class V, class M>
  CCP_HD auto update(S& state, V s, M same) const {
    const V l = logit(s, same);
    this->gather(state, l, l, same);
    return s == s;
  }

  template <class V, class M>
  CCP_HD V grad(V s, M same, const V* saved, V pos_weight, V) const {
    const V g = this->logit_grad(logit(s, same), same, saved) * pos_weight * scale;
    return any(same) ? select(same, g * target_grad(s), g) : g;
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
