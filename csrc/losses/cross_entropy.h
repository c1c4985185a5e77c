// Cross-entropy of a row's logits l: log Σ_Z e^l - log Σ_P e^l, Z being all columns or the negatives alone (the value
// may then be negative). A row without positives, or where Z is the negatives without those, adds nothing. A loss
// derives from this and says what the logits are.
#pragma once

#include "losses/pos_neg_lse.h"

namespace ccp {
namespace CCP_CAPABILITY {

template <class T, bool all_columns>
struct CrossEntropy : PosNegLse<T> {
  template <class V>
  using State = typename PosNegLse<T>::template State<V>;

  // saved: the log-sum-exp of the positives and of Z, +inf for a row that adds nothing: shares computed from it are
  // zero. Then what a positive's share of P is to be multiplied by: with Z all columns the negatives' share of Z.
  CCP_HD RowParts finalize(const State<T>& state, int64_t, T* saved) const {
    if (state.pos.empty() || (!all_columns && state.neg.empty())) {
      saved[0] = saved[1] = T(__builtin_inf());
      return {0, 0, 0, 0, 1, 0};
    }
    LogSumExp<double, double> denominator{double(state.neg.max_term), double(state.neg.sum)};
    if (all_columns) denominator.merge({double(state.pos.max_term), double(state.pos.sum)});
    const double pos_lse = state.pos.log(), all_lse = denominator.log();
    saved[0] = T(pos_lse);
    saved[1] = T(all_lse);
    saved[2] = T(all_columns ? ::exp(state.neg.log() - all_lse) : 1);
    return {all_lse - pos_lse, 0, 1, 0, 1, 0};
  }

  // d loss / d logit. A positive's is its share of P less that of Z. The difference of the two would be rounding alone
  // where both are near 1, so it is taken as a product.
  template <class V, class M>
  CCP_HD V logit_grad(V logit, M same, const V* saved) const {
    const V share = exp(logit - select(same, saved[0], saved[1]));
    return any(same) ? select(same, V{} - share * saved[2], share) : share;
  }
};

}  // namespace CCP_CAPABILITY
}  // namespace ccp
