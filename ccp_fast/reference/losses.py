"""The losses: each a short function from matrices over all pairs to `RowParts`, and a public face to it.

Notation: row i, column j; P_i its positives, N_i its negatives; s_ij dot product, d_ij distance, both of
normalised vectors. Arguments shared by all:

anchors           [M, D] floating point
references        None: the anchors themselves, a sample paired with all but itself;
                  [N, D]: any labelled vectors;
                  [C, K, D]: K proxies of each of C classes; labels must lie in [0, C)
labels            [M] int64
reference_labels  [N] int64, for references of shape [N, D] only
exclude_self      True: the references [N, D] begin with the anchors themselves; no pair of anchor i and reference i
normalize         "ball" v/max(1,‖v‖), "unit" v/‖v‖, None; of anchors and references alike
reduction         "none" one value a row, "sum", "anchor_mean" sum / rows,
                  "mean" and "active_mean" as each loss says
anchor            "sample": the anchors are the rows; "proxy": the references are the rows

All raise ValueError, naming the argument, for a wrong shape, dtype, label or option.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from ccp_fast._checks import Anchor, Normalize, Reduction, softmax_margin
from ccp_fast.reference.neighbors import nearest_reference
from ccp_fast.reference.pairs import Pairs, at_least_float32, make_pairs, norm, normalise
from ccp_fast.reference.reduction import Count, RowParts, reduce


def contrastive(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 0.5,
    distance: Literal["l2", "cosine"] = "l2",
    normalize: Normalize = "ball",
    reduction: Reduction = "active_mean",
    anchor: Anchor = "sample",
    exclude_self: bool = False,
) -> Tensor:
    """Contrastive loss with two margins.

    l2:      Σ_P (d − pos_margin)₊ + Σ_N (neg_margin − d)₊
    cosine:  Σ_P (1 − s − pos_margin)₊ + Σ_N (s − neg_margin)₊, of the vectors as `normalize` leaves them

    active_mean: each sign over its nonzero terms (C2 of arXiv 2209.09060). mean: each over all R·Q entries.
    C1 of that paper is distance="cosine", normalize="unit", reduction="anchor_mean".
    """
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    if distance == "l2":
        d = pairs.distance()
        parts = _hinges(d - pos_margin, neg_margin - d, pairs.positive, pairs.negative)
    elif distance == "cosine":
        s = pairs.similarity()
        parts = _hinges(1 - s - pos_margin, s - neg_margin, pairs.positive, pairs.negative)
    else:
        raise ValueError(f'distance: expected "l2" or "cosine", got {distance!r}')
    return reduce(parts, reduction)


def triplet(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    margin: float = 0.05,
    normalize: Normalize = "ball",
    reduction: Reduction = "active_mean",
    anchor: Anchor = "sample",
    exclude_self: bool = False,
) -> Tensor:
    """Σ_{p∈P_i, n∈N_i} (d_ip − d_in + margin)₊, over all triplets.

    active_mean: over the triplets above zero. mean: over all triplets.
    """
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    return reduce(_triplets(pairs.distance(), pairs.positive, pairs.negative, margin), reduction)


def multi_similarity(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    normalize: Normalize = "unit",
    reduction: Reduction = "mean",
    anchor: Anchor = "sample",
    exclude_self: bool = False,
) -> Tensor:
    """(1/α) log(1 + Σ_P e^{−α(s−base)}) + (1/β) log(1 + Σ_N e^{β(s−base)}).

    Source: arXiv 1904.06627, section 3.3, without the pair mining.
    mean: over the rows. active_mean: each part over the rows that have such a pair.
    """
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    s = pairs.similarity()
    pull = _log1p_sum_exp(-alpha * (s - base), pairs.positive) / alpha
    push = _log1p_sum_exp(beta * (s - base), pairs.negative) / beta
    rows = Count(len(s), len(s))
    return reduce(RowParts(pull, push, _rows_with(pairs.positive, pairs.negative), rows), reduction)


def proxy_nca(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    temperature: float = 1 / 9,
    variant: Literal["plus_plus", "original"] = "plus_plus",
    assignment: Literal["static", "dynamic"] = "static",
    normalize: Normalize = "unit",
    reduction: Reduction = "mean",
    anchor: Anchor = "sample",
    exclude_self: bool = False,
) -> Tensor:
    """−log(Σ_P e^{−d²/T} / Σ_Z e^{−d²/T}); Z is P and N ("plus_plus") or N alone ("original").

    assignment="dynamic": the columns are the nearest of all proxies of each sample, with the sample's label.

    Sources: arXiv 2004.01113 (plus_plus, K = 1), arXiv 1703.07464 (original; it can be negative).
    A row without positives, or without negatives in "original", gives 0.
    mean: over the rows. active_mean: over the rows that do not give that 0.
    """
    if assignment == "dynamic" and references is not None and references.dim() == 3 and not exclude_self:
        proxies = references.flatten(0, 1)
        references = proxies[nearest_reference(anchors, proxies, normalize=normalize).indices]
        reference_labels = labels
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    logits = -pairs.squared_distance() / temperature
    return reduce(_neighbourhood(logits, pairs.positive, pairs.negative, variant), reduction)


def proxy_anchor(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    alpha: float = 32.0,
    margin: float = 0.1,
    normalize: Normalize = "unit",
    reduction: Reduction = "mean",
    anchor: Anchor = "proxy",
    exclude_self: bool = False,
) -> Tensor:
    """log(1 + Σ_P e^{−α(s−margin)}) + log(1 + Σ_N e^{α(s+margin)}) (arXiv 2003.13911, eq. 4).

    mean: positive part over the rows with positives, negative part over all rows, as in the paper.
    active_mean: each part over the rows that have such a pair.
    """
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    s = pairs.similarity()
    pull = _log1p_sum_exp(-alpha * (s - margin), pairs.positive)
    push = _log1p_sum_exp(alpha * (s + margin), pairs.negative)
    active = _rows_with(pairs.positive, pairs.negative)
    return reduce(RowParts(pull, push, active, Count(active.positive, len(s))), reduction)


def lifted_structure(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    variant: Literal["pair", "anchor"] = "pair",
    normalize: Normalize = None,
    reduction: Reduction = "mean",
    anchor: Anchor = "sample",
    exclude_self: bool = False,
) -> Tensor:
    """ "pair":   ½ Σ_{j∈P_i} (log(Σ_{k∈N_i} e^{margin−d_ik} + Σ_{l∈N_j} e^{margin−d_jl}) + d_ij)₊²
    "anchor": (log Σ_P e^{d} + log Σ_N e^{margin−d})₊, a logarithm of an empty sum counting as 0

    Sources: arXiv 1511.06452, eq. 4, within the batch; arXiv 1703.07737, eq. 8.
    mean: over the pairs, or the rows. active_mean: over those above zero.
    """
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    d = pairs.distance()
    push = _log_sum_exp(margin - d, pairs.negative, empty=-torch.inf if variant == "pair" else 0.0)
    if variant == "pair":
        if references is not None:
            raise ValueError('references: expected None with variant="pair", got a tensor')
        hinge = relu(torch.logaddexp(push[:, None], push) + d).masked_fill(~pairs.positive, 0.0)
        value = hinge.square().sum(1) / 2
        active, total = Count((hinge > 0).sum(), 0), Count(pairs.positive.sum(), 0)
    elif variant == "anchor":
        value = relu(_log_sum_exp(d, pairs.positive, empty=0.0) + push)
        active, total = Count((value > 0).sum(), 0), Count(len(value), 0)
    else:
        raise ValueError(f'variant: expected "pair" or "anchor", got {variant!r}')
    return reduce(RowParts(value, torch.zeros_like(value), active, total), reduction)


def negative_lse(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    margin: float,
    normalize: Normalize,
    reduction: Reduction,
    anchor: Anchor,
    exclude_self: bool = False,
) -> Tensor:
    """log Σ_N e^{margin−d}, −1e30 for a row without negatives: what "pair" of `lifted_structure` needs of them."""
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    value = _log_sum_exp(margin - pairs.distance(), pairs.negative, empty=-1e30)
    rows = Count(0, len(value))
    return reduce(RowParts(torch.zeros_like(value), value, rows, rows), reduction)


def margin_softmax(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    scale: float = 64.0,
    margin: float | None = None,
    kind: Literal["none", "cosface", "arcface"] = "none",
    normalize: Normalize = "unit",
    reduction: Reduction = "mean",
    anchor: Anchor = "sample",
    exclude_self: bool = False,
) -> Tensor:
    """Cross-entropy of scale·s_c over classes, s_c that of the class's best proxy; the row's own becomes

    "none"     s; it takes no margin
    "cosface"  s − margin, .35 if None             (arXiv 1801.09414, eq. 4)
    "arcface"  cos(θ + margin), .5 if None, where θ + margin <= π, else s − margin·sin(margin)
                                                   (arXiv 1801.07698, eq. 3)

    Columns that are no proxies are classes by themselves; several of the row's own are summed, none gives 0.
    mean: over the rows. active_mean: over the rows that have a positive.
    """
    margin = softmax_margin(kind, margin)
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    s, positive, negative = _by_class(pairs, references, anchor)
    best = s.gather(2, s.argmax(2, keepdim=True)).squeeze(2)  # the first of several
    if kind == "arcface":
        turned = best * math.cos(margin) - _sine(best) * math.sin(margin)
        target = torch.where(best < -math.cos(margin), best - margin * math.sin(margin), turned)
    else:
        target = best - margin
    logits = scale * torch.where(positive, target, best)
    return reduce(_neighbourhood(logits, positive, negative, "plus_plus"), reduction)


def soft_triple(
    anchors: Tensor,
    references: Tensor | None,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    tau: float = 0.2,
    normalize: Normalize = "unit",
    reduction: Reduction = "mean",
    anchor: Anchor = "sample",
    exclude_self: bool = False,
) -> Tensor:
    """Cross-entropy of scale·(S_c − margin·1_own), S_c = Σ_k softmax_k(s_ck/gamma)·s_ck (arXiv 1909.05235, eq. 8);

    plus tau·Σ_{c, k<k'} ‖w_ck − w_ck'‖ / (C·K·(K−1)) over proxies [C, K, D] of length 1, to each value (eq. 9, 10).
    Columns that are no proxies are classes by themselves; several of the row's own are summed, none gives 0.
    mean: over the rows. active_mean: over the rows that have a positive.
    """
    pairs = make_pairs(anchors, references, labels, reference_labels, exclude_self, normalize, anchor)
    s, positive, negative = _by_class(pairs, references, anchor)
    relaxed = (torch.softmax(s / gamma, 2) * s).sum(2)
    logits = scale * torch.where(positive, relaxed - margin, relaxed)
    value = reduce(_neighbourhood(logits, positive, negative, "plus_plus"), reduction)
    if references is None or references.dim() == 2:
        return value
    return value + tau * centre_spread(references)


def centre_spread(proxies: Tensor) -> Tensor:
    """Σ_{c, k<k'} ‖w_ck − w_ck'‖ / (C·K·(K−1)) of proxies [C, K, D], each made one of length 1; 0 for K = 1."""
    classes, centres, _ = proxies.shape
    w = normalise(at_least_float32(proxies), "unit")
    distances = norm(w[:, :, None] - w[:, None])  # [C, K, K]: every pair twice
    return distances.sum() / max(2 * classes * centres * (centres - 1), 1)


def _by_class(pairs: Pairs, references: Tensor | None, anchor: Anchor) -> tuple[Tensor, Tensor, Tensor]:
    """[R, C, K] similarities, [R, C] positive and negative: K > 1 where the columns are proxies."""
    s = pairs.similarity()
    classes, size = s.shape[1], 1
    if references is not None and references.dim() == 3 and anchor == "sample":
        classes, size, _ = references.shape
    first = slice(None, None, size)
    return s.unflatten(1, (classes, size)), pairs.positive[:, first], pairs.negative[:, first]


def _sine(cosine: Tensor) -> Tensor:
    """√(1 − s²), 0 with derivative 0 where |s| >= 1."""
    squared = 1 - cosine.square()
    flat = squared <= 0
    return squared.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0)


def _hinges(pull: Tensor, push: Tensor, positive: Tensor, negative: Tensor) -> RowParts:
    """Row sums of the hinges of two matrices [R, Q]."""
    pull = relu(pull).masked_fill(~positive, 0.0)
    push = relu(push).masked_fill(~negative, 0.0)
    active = Count((pull > 0).sum(), (push > 0).sum())
    return RowParts(pull.sum(1), push.sum(1), active, Count(pull.numel(), push.numel()))


def _triplets(d: Tensor, positive: Tensor, negative: Tensor, margin: float) -> RowParts:
    """d [R, Q]; the cube [R, Q, Q] holds d_ip − d_in + margin."""
    valid = positive[:, :, None] & negative[:, None, :]
    hinge = relu(d[:, :, None] - d[:, None, :] + margin).masked_fill(~valid, 0.0)
    return RowParts(
        hinge.sum((1, 2)), d.new_zeros(len(d)), Count((hinge > 0).sum(), 0), Count(valid.sum(), 0)
    )


def _neighbourhood(logits: Tensor, positive: Tensor, negative: Tensor, variant: str) -> RowParts:
    """−log of the share of the positives, from logits [R, Q]."""
    odds = _log_sum_exp(logits, negative, empty=-torch.inf) - _log_sum_exp(logits, positive, empty=0.0)
    if variant == "plus_plus":
        counted = positive.any(1)
        value = _softplus(odds)
    elif variant == "original":
        counted = positive.any(1) & negative.any(1)
        value = odds
    else:
        raise ValueError(f'variant: expected "plus_plus" or "original", got {variant!r}')
    value = value.masked_fill(~counted, 0.0)
    return RowParts(value, torch.zeros_like(value), Count(counted.sum(), 0), Count(len(value), 0))


def _rows_with(positive: Tensor, negative: Tensor) -> Count:
    return Count(positive.any(1).sum(), negative.any(1).sum())


def _log1p_sum_exp(logits: Tensor, mask: Tensor) -> Tensor:
    """[R] log(1 + Σ_mask e^logits), 0 for an empty row."""
    return _softplus(_log_sum_exp(logits, mask, empty=-torch.inf))


def _log_sum_exp(logits: Tensor, mask: Tensor, empty: float) -> Tensor:
    """[R] log Σ_mask e^logits; a row of an empty mask gives `empty` and no gradient."""
    is_empty = ~mask.any(1)
    kept = logits.masked_fill(~(mask | is_empty[:, None]), -torch.inf)
    return torch.logsumexp(kept, 1).masked_fill(is_empty, empty)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to full precision; `torch.nn.functional.softplus` is linear above 20."""
    return -logsigmoid(-x)
