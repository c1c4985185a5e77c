// What losses gather that have a log-sum-exp over a row's positives and one over its negatives.
#pragma once

#include "losses/loss.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T>
struct PosNegLse {
  template <class V>
  struct State {
    LogSumExp<V, T> pos, neg;
  };
  template <class V>
  struct Maxima {
    LargestTerm<V, T> pos, neg;
  };
  template <class S>
  CCP_HD void init(S& state) const {
    state.pos.init();
    state.neg.init();
  }
  template <class V>
  CCP_HD void start(State<V>& state, const Maxima<V>& maxima) const {
    state = {maxima.pos.start(), maxima.neg.start()};
  }

  // The pair's term, whichever of the two it is.
  template <class S, class V, class M>
  CCP_HD void gather(S& state, V pos_term, V neg_term, M same) const {
    if (any(same)) state.pos.add(pos_term, same);
    state.neg.add(neg_term, !same);
  }

  template <class V>
  CCP_HD void merge(State<V>& a, const State<V>& b) const {
    a.pos.merge(b.pos);
    a.neg.merge(b.neg);
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
