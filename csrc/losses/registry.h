// The losses by name. Adding one: a struct in csrc/losses/, its line here, and its public function and docstring in
// ccp_fast/functional.py; CONTRIBUTING.md walks through it.
#pragma once

#include "losses/contrastive.h"
#include "losses/lifted.h"
#include "losses/margin_softmax.h"
#include "losses/multi_similarity.h"
#include "losses/proxy_anchor.h"
#include "losses/proxy_nca.h"
#include "losses/soft_triple.h"
#include "losses/triplet.h"

// X(name, number of parameters, struct over the number type T)
#define CCP_FOR_EACH_LOSS(X)                                \
  X(contrastive_l2, 2, (Contrastive<T, Metric::kDistance>)) \
  X(contrastive_cosine, 2, (Contrastive<T, Metric::kDot>))  \
  X(triplet, 1, (Triplet<T>))                               \
  X(multi_similarity, 3, (MultiSimilarity<T>))              \
  X(proxy_nca, 1, (ProxyNca<T, true>))                      \
  X(proxy_nca_original, 1, (ProxyNca<T, false>))            \
  X(proxy_anchor, 2, (ProxyAnchor<T>))                      \
  X(lifted_anchor, 1, (LiftedAnchor<T>))                    \
  X(negative_lse, 1, (NegativeLse<T>))                      \
  X(margin_softmax, 2, (MarginSoftmax<T, false>))           \
  X(margin_softmax_arcface, 2, (MarginSoftmax<T, true>))    \
  X(soft_triple, 3, (SoftTriple<T>))

namespace ccp {

enum class LossId : int {
#define CCP_LOSS_ID(name, parameters, ...) k_##name,
  CCP_FOR_EACH_LOSS(CCP_LOSS_ID)
#undef CCP_LOSS_ID
};

}  // namespace ccp
