// Triplet loss over all triplets of a row: Σ_{p∈P} Σ_{n∈N} (d_p - d_n + margin)₊.
// A row's positives are few: their distances are gathered first, so that a negative meets them all as it streams past,
// and neither the M×N matrix nor the M×N×N tensor exists.
#pragma once

#include "losses/loss.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
struct Triplet {
  static constexpr Metric kMetric = Metric::kDistance;
  static constexpr bool kHinge = true;
  static constexpr bool kUsesPositives = true;
  static constexpr bool kGrouped = false;

  T margin;
  explicit Triplet(const double* p) : margin(T(p[0])) {}

  template <class V>
  struct State {
    V sum, active, positives, negatives;
  };
  template <class V>
  CCP_HD void init(State<V>& state) const {
    state = State<V>{};
  }

  template <class V, class M, class Row>
  CCP_HD auto update(State<V>& state, V d, M same, const Row& row) const {
    state.positives = state.positives + select(same, V{} + T(1), V{});
    state.negatives = state.negatives + select(same, V{}, V{} + T(1));
    const V threshold = d - margin;
    const auto violated = (!(row.farthest <= threshold)) & (!same);
    if (any(violated)) {
      for (int64_t o = 0; o < row.count; ++o) {
        const V t = row.distance(o) - threshold;
        const auto active = (!(t <= T(0))) & violated;
        state.sum = state.sum + select(active, t, V{});
        state.active = state.active + select(active, V{} + T(1), V{});
      }
    }
    return violated | same;
  }

  // One more look at the negatives before grad(): in how many triplets is each positive active?
  template <class V, class M, class Row>
  CCP_HD void count_active(V d, M same, const Row& row) const {
    const V threshold = d - margin;
    const auto violated = (!(row.farthest <= threshold)) & (!same);
    if (any(violated)) {
      for (int64_t o = 0; o < row.count; ++o) row.count_active(o, (!(row.distance(o) <= threshold)) & violated);
    }
  }

  template <class V>
  CCP_HD void merge(State<V>& a, const State<V>& b) const {
    a.sum = a.sum + b.sum;
    a.active = a.active + b.active;
    a.positives = a.positives + b.positives;
    a.negatives = a.negatives + b.negatives;
  }

  CCP_HD RowParts finalize(const State<T>& s, int64_t, T*) const {
    return {s.sum, 0, s.active, 0, double(s.positives) * double(s.negatives), 0};
  }

  // `ordinal`: which of its class's columns this column is.
  template <class V, class M, class Row>
  CCP_HD V grad(V d, M same, V weight, const Row& row, int64_t ordinal) const {
    V pushes = V{};
    const V threshold = d - margin;
    const auto violated = (!(row.farthest <= threshold)) & (!same);
    if (any(violated)) {
      for (int64_t o = 0; o < row.count; ++o)
        pushes = pushes - select((!(row.distance(o) <= threshold)) & violated, V{} + T(1), V{});
    }
    if (any(same)) pushes = select(same, row.active(ordinal), pushes);
    return pushes * weight;
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
