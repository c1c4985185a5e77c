"""The losses in eager PyTorch, by autograd.

Each is a function of the matrix of similarities of unit vectors, s [M, N], and of the columns of each row's
class, positives [M, P]; that those columns are known by index saves two masks of the size of s. Parameters
are those of `ccp_fast.functional`, the reduction is the loss's usual one, named in each docstring. Of bfloat16
embeddings the product is bfloat16, as a matrix unit gives it, and everything after it float32.

A loss comes as its terms, sums over rows or columns and what each is divided by, so that `truth` can take a matrix
that has no room in parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, relu, softplus


class Term(NamedTuple):
    """A part of a loss: total / number. The total has gradients, the number is that of the terms in it."""

    total: Tensor
    number: Tensor | int


PairLoss = Callable[[Tensor, Tensor], tuple[Term, ...]]

NEVER = -1e4  # a similarity that takes no part: exp of it is 0, its distance is far outside every margin


def loss_of(pair_loss: PairLoss, anchors: Tensor, references: Tensor | None, labels: Tensor) -> Tensor:
    """The loss of anchors [M, D] against proxies [C, K, D], or within the batch where references is None."""
    a = normalize(anchors, dim=1)
    if references is None:
        return value_of(pair_loss(_wide((a @ a.T).fill_diagonal_(NEVER)), positives_of(labels, None)))
    r = normalize(references.flatten(0, 1), dim=1)
    return value_of(pair_loss(_wide(a @ r.T), positives_of(labels, references.shape[1])))


def value_of(terms: tuple[Term, ...]) -> Tensor:
    """Their sum."""
    first, *others = (term.total / _at_least_one(term.number) for term in terms)
    return sum(others, first)


def positives_of(labels: Tensor, per_class: int | None) -> Tensor:
    """Columns [M, P] of each row's class: its proxies, or its others in a batch of classes of one size."""
    if per_class is not None:
        return labels[:, None] * per_class + torch.arange(per_class, device=labels.device)
    same = (labels[:, None] == labels).fill_diagonal_(False)
    return same.nonzero()[:, 1].view(len(labels), -1)


def contrastive_cosine(s: Tensor, positives: Tensor, neg_margin: float) -> tuple[Term, ...]:
    """C1: Σ_P (1 − s) + Σ_N (s − neg_margin)₊, over the rows."""
    pull = 1 - s.gather(1, positives)
    push = relu(s.scatter(1, positives, NEVER) - neg_margin)
    return (Term(pull.sum() + push.sum(), len(s)),)


def contrastive_l2(s: Tensor, positives: Tensor, pos_margin: float, neg_margin: float) -> tuple[Term, ...]:
    """C2: Σ_P (d − pos_margin)₊ + Σ_N (neg_margin − d)₊, each over its terms above zero."""
    pull = relu(_distance(s.gather(1, positives)) - pos_margin)
    push = relu(neg_margin - _distance(s.scatter(1, positives, NEVER)))
    return _above_zero(pull), _above_zero(push)


def triplet(s: Tensor, positives: Tensor, margin: float) -> tuple[Term, ...]:
    """Σ (d_ip − d_in + margin)₊, over its terms above zero; one positive after the other."""
    far = _distance(s.gather(1, positives)) + margin
    negative = _distance(s.scatter(1, positives, NEVER))
    total, count = s.new_zeros(()), s.new_zeros((), dtype=torch.int64)
    for p in range(positives.shape[1]):
        hinge = relu(far[:, p, None] - negative)
        total = total + hinge.sum()
        count = count + (hinge > 0).sum()
    return (Term(total, count),)


def multi_similarity(
    s: Tensor, positives: Tensor, alpha: float, beta: float, base: float
) -> tuple[Term, ...]:
    """(1/α) log(1 + Σ_P e^{−α(s−base)}) + (1/β) log(1 + Σ_N e^{β(s−base)}), over the rows."""
    pull = softplus(torch.logsumexp(alpha * (base - s.gather(1, positives)), 1)) / alpha
    push = softplus(torch.logsumexp(beta * (s.scatter(1, positives, NEVER) - base), 1)) / beta
    return (Term((pull + push).sum(), len(s)),)


def proxy_nca(s: Tensor, positives: Tensor, temperature: float) -> tuple[Term, ...]:
    """log Σ e^{2s/T} − log Σ_P e^{2s/T}, over the rows: −d²/T = 2(s − 1)/T for unit vectors."""
    logits = s * (2 / temperature)
    terms = torch.logsumexp(logits, 1) - torch.logsumexp(logits.gather(1, positives), 1)
    return (Term(terms.sum(), len(s)),)


def proxy_nca_original(s: Tensor, positives: Tensor, temperature: float) -> tuple[Term, ...]:
    """The same, the first sum over the negatives alone."""
    logits = s * (2 / temperature)
    negatives = logits.scatter(1, positives, NEVER)
    terms = torch.logsumexp(negatives, 1) - torch.logsumexp(logits.gather(1, positives), 1)
    return (Term(terms.sum(), len(s)),)


def proxy_anchor(s: Tensor, positives: Tensor, alpha: float, margin: float) -> tuple[Term, ...]:
    """log(1 + Σ_P e^{−α(s−margin)}) over columns with positives + log(1 + Σ_N e^{α(s+margin)}) over all."""
    column = positives[:, 0]  # one proxy a class
    pulls = s.new_zeros(s.shape[1]).index_add(
        0, column, torch.exp(alpha * (margin - s.gather(1, positives)[:, 0]))
    )
    push = softplus(torch.logsumexp(alpha * (s.scatter(1, positives, NEVER) + margin), 0))
    return Term(torch.log1p(pulls).sum(), (pulls > 0).sum()), Term(push.sum(), s.shape[1])


def arcface(s: Tensor, positives: Tensor, scale: float, margin: float) -> tuple[Term, ...]:
    """Cross-entropy of scale·s over classes of one proxy, with θ + margin in place of θ for the row's own."""
    cosine = s.gather(1, positives)
    sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    target = torch.where(cosine < -math.cos(margin), cosine - margin * math.sin(margin), turned)
    logits = scale * s.scatter(1, positives, target)
    return (Term(cross_entropy(logits, positives[:, 0], reduction="sum"), len(s)),)


def soft_triple(s: Tensor, positives: Tensor, scale: float, gamma: float, margin: float) -> tuple[Term, ...]:
    """Cross-entropy of scale·(S_c − margin·1_own), S_c = Σ_k softmax_k(s_ck/γ)·s_ck; no regulariser."""
    per_class = positives.shape[1]
    by_class, own = s.unflatten(1, (-1, per_class)), positives[:, :1] // per_class
    relaxed = (torch.softmax(by_class / gamma, 2) * by_class).sum(2)
    logits = scale * relaxed.scatter_add(1, own, torch.full_like(own, -margin, dtype=s.dtype))
    return (Term(cross_entropy(logits, own[:, 0], reduction="sum"), len(s)),)


def _at_least_one(number: Tensor | int) -> Tensor | int:
    return number.clamp(min=1) if isinstance(number, Tensor) else max(number, 1)


def _wide(s: Tensor) -> Tensor:
    return s.float() if s.dtype == torch.bfloat16 else s


def _distance(s: Tensor) -> Tensor:
    return (2 - 2 * s).clamp(min=1e-12).sqrt()


def _above_zero(hinge: Tensor) -> Term:
    return Term(hinge.sum(), (hinge > 0).sum())
