"""The fused losses as functions: import one into your own trainer.

Every loss compares M anchors (samples) with N references and reduces over all M·N pairs without ever storing them:
extra memory is O((M + N)·D). Arguments that all of them share:

anchors            [M, D] the samples' embeddings, also where anchor="proxy" makes the references the rows; float32,
                   float64, bfloat16 or float16; sums are in float32 (float64 if a side is)
references         None: the anchors themselves, each paired with all others but not with itself;
                   [N, D] with reference_labels: a memory, a second batch;
                   [C, K, D]: K proxies of each of C classes, class c owning references[c];
                   `ccp_fast.distributed.ShardedProxies`: the same, spread over ranks
labels             [M] int64; in [0, C) where the references are proxies
reference_labels   [N] int64, with references of shape [N, D] only
exclude_self       True: the first M of the references [N, D] are the anchors themselves, or copies of them, with their
                   labels; anchor i is not paired with reference i
normalize          "unit" v/‖v‖ (zero vectors stay zero), "ball" v/max(1, ‖v‖), None; of both sides, inside the op
reduction          "none": one value per row; "sum"; "anchor_mean": sum / rows; "mean" and "active_mean": see each loss
anchor             "sample": the samples are the rows of the loss; "proxy": the references are the rows and the samples
                   their columns

Notation: i a row, j a column; P_i the columns of i's class (without i itself), N_i the others; s_ij the dot product and
d_ij = ‖a_i − r_j‖ the distance of the normalised vectors. A distance of zero has the gradient zero.

Losses and gradients are deterministic: the same bits for any number of threads. Both sides may have different dtypes,
and each gradient has its own side's, so autocast never touches a parameter. `create_graph=True` works, through the
dense `ccp_fast.reference`.

All raise ValueError naming the argument for a wrong shape, dtype, device or option, and RuntimeError for labels out of
range (that needs the values).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ccp_fast import _loss_options
from ccp_fast._checks import Anchor, Normalize, Reduction, check_labels, check_vectors
from ccp_fast.neighbors import NearestReferences, nearest_reference, nearest_references
from ccp_fast.ops.centre_spread import centre_spread
from ccp_fast.ops.lifted_pairs import lifted_pairs
from ccp_fast.ops.similarity_loss import MOST_MEMBERS, similarity_loss
from ccp_fast.ops.similarity_shard import LossSpec
from ccp_fast.projection import projection_grad_
from ccp_fast.reference.pairs import normalise
from ccp_fast.reference.reduction import Count, RowParts, reduce
from ccp_fast.references import SplitProxies, SplitReferences
from ccp_fast.selection import FarthestPoints, farthest_points

__all__ = [
    "FarthestPoints",
    "NearestReferences",
    "contrastive",
    "farthest_points",
    "lifted_structure",
    "margin_softmax",
    "multi_similarity",
    "nearest_reference",
    "nearest_references",
    "projection_grad_",
    "proxy_anchor",
    "proxy_nca",
    "soft_triple",
    "triplet",
]

References = Tensor | SplitReferences | None


def contrastive(
    anchors: Tensor,
    references: References,
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
    """Contrastive loss with a margin on each side.

    l2: Σ_P (d − pos_margin)₊ + Σ_N (neg_margin − d)₊; cosine: Σ_P (1 − s − pos_margin)₊ + Σ_N (s − neg_margin)₊.
    distance: "cosine" is the dot product of the vectors as `normalize` leaves them.

    active_mean: positives and negatives each over their nonzero terms. mean: each over all M·N entries.
    The default form is C2 of arXiv 2209.09060, whose margins differ between data sets (docs/losses/contrastive.md); C1
    is distance="cosine", normalize="unit", reduction="anchor_mean".
    Source: Hadsell, Chopra, LeCun 2006, eq. 4, unsquared as in arXiv 2209.09060.
    """
    spec = _loss_options.contrastive(pos_margin, neg_margin, distance, normalize, reduction, anchor)
    return _loss(spec, anchors, references, labels, reference_labels, exclude_self)


def triplet(
    anchors: Tensor,
    references: References,
    labels: Tensor,
    reference_labels: Tensor | None = None,
    *,
    margin: float = 0.05,
    normalize: Normalize = "ball",
    reduction: Reduction = "active_mean",
    anchor: Anchor = "sample",
    exclude_self: bool = False,
) -> Tensor:
    """Triplet loss over every triplet of a row, a positive and a negative: Σ (d_ip − d_in + margin)₊.

    active_mean: over the triplets above zero. mean: over all triplets. Time is O(M·N·K) for K positives per row; the
    M×N×N tensor is never built.
    Source: Weinberger, Saul 2009; Schroff et al. 2015 (arXiv 1503.03832), eq. 3, with unsquared distances.
    """
    spec = _loss_options.triplet(margin, normalize, reduction, anchor)
    return _loss(spec, anchors, references, labels, reference_labels, exclude_self)


def multi_similarity(
    anchors: Tensor,
    references: References,
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
    """Multi-Similarity loss: (1/alpha)·log(1 + Σ_P e^{−alpha(s−base)}) + (1/beta)·log(1 + Σ_N e^{beta(s−base)}).

    mean: over the rows. active_mean: each part over the rows that have such a pair. No pairs are mined away.
    Source: Wang et al. 2019 (arXiv 1904.06627), eq. 15.
    """
    spec = _loss_options.multi_similarity(alpha, beta, base, normalize, reduction, anchor)
    return _loss(spec, anchors, references, labels, reference_labels, exclude_self)


def proxy_nca(
    anchors: Tensor,
    references: References,
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
    """Proxy-NCA with logits l = −d²/temperature: log Σ_Z e^l − log Σ_P e^l.

    "plus_plus": Z is every column. "original": Z is the negatives alone, so the loss may be negative. Several positives
    are summed. A row without positives (or, in "original", without negatives) adds 0. On unit vectors −d²/temperature
    is 2·cos/temperature up to a constant: the default equals the official ProxyNCA++ code's 18·cos.

    assignment, of proxies [C, K, D]: "static", proxy (c, k) stands for class c. "dynamic", proxies belong to no class:
    each sample x_j is stood for by p(x_j), the nearest of all C·K proxies, and these are the columns, with the samples'
    labels (any int64: they only tell which samples belong together). P_i are then the p(x_j) of i's class, p(x_i) among
    them: it is the positive of a sample alone in its class. The source draws triplets (x, y, Z), y a sample of x's
    class, and compares x with p(y) and p(Z); here y is every sample of the batch, x too, as with static assignment,
    where p(x) = p(y). Proxies that are nearest to no sample have no gradient, and one that is nearest to all tells no
    two samples apart: start from proxies that are spread among the samples (`farthest_points`). References [N, D] and
    the batch itself are samples, and no proxies to choose from: with them both assignments are the same.

    mean: over the rows. active_mean: over the rows that count.
    Source: Movshovitz-Attias et al. 2017 (arXiv 1703.07464), eq. 6, both assignments in section 3; Teh et al. 2020
    (arXiv 2004.01113), eq. 6.
    """
    spec = _loss_options.proxy_nca(temperature, variant, assignment, normalize, reduction, anchor)
    if assignment == "dynamic" and isinstance(references, SplitProxies):
        references = references.assigned()
    elif (
        assignment == "dynamic"
        and isinstance(references, Tensor)
        and references.dim() == 3
        and not exclude_self
    ):
        proxies = references.flatten(0, 1)
        if len(proxies) == 0 and len(anchors) > 0:
            raise ValueError(f"references: expected a proxy to assign, got shape {list(references.shape)}")
        references = proxies[nearest_reference(anchors, proxies, normalize=normalize).indices]
        reference_labels = labels
    return _loss(spec, anchors, references, labels, reference_labels, exclude_self)


def proxy_anchor(
    anchors: Tensor,
    references: References,
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
    """Proxy-Anchor loss, rows being the proxies: log(1 + Σ_P e^{−alpha(s−margin)}) + log(1 + Σ_N e^{alpha(s+margin)}).

    mean: the positive part over the rows that have positives, the negative part over all rows, as in the paper.
    active_mean: each part over the rows that have such a pair.
    Source: Kim et al. 2020 (arXiv 2003.13911), eq. 4.
    """
    spec = _loss_options.proxy_anchor(alpha, margin, normalize, reduction, anchor)
    return _loss(spec, anchors, references, labels, reference_labels, exclude_self)


def lifted_structure(
    anchors: Tensor,
    references: References,
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
    """Lifted structure loss: positives against the soft minimum of the distances to negatives.

    "pair", the paper's: ½ Σ_{j∈P_i} (log(Σ_{k∈N_i} e^{margin−d_ik} + Σ_{l∈N_j} e^{margin−d_jl}) + d_ij)₊². It needs the
    negatives of both samples of a pair, so references is None: the batch itself.
    "anchor": (log Σ_P e^{d} + log Σ_N e^{margin−d})₊, a logarithm of an empty sum counting as 0; any references.

    mean: "pair" over the positive pairs, "anchor" over the rows. active_mean: over those above zero. The paper does not
    normalise embeddings, hence normalize=None; pytorch-metric-learning does ("unit").
    Source: Oh Song et al. 2016 (arXiv 1511.06452), eq. 4; Hermans et al. 2017 (arXiv 1703.07737), eq. 8.
    """
    spec = _loss_options.lifted_structure(margin, variant, normalize, reduction, anchor)
    if variant == "anchor":
        return _loss(spec, anchors, references, labels, reference_labels, exclude_self)
    if references is not None:
        raise ValueError('references: expected None, the batch itself, with variant="pair", got a tensor')
    check_vectors("anchors", anchors, "[M, D]", 2)
    # Gradients of two parts, rounded once.
    anchors = anchors.to(torch.promote_types(anchors.dtype, torch.float32))
    lse = _loss(spec, anchors, None, labels, reference_labels, False)
    value, terms, active = lifted_pairs(normalise(anchors, normalize), labels, lse)
    return reduce(RowParts(value, torch.zeros_like(value), Count(active, 0), Count(terms, 0)), reduction)


def margin_softmax(
    anchors: Tensor,
    references: References,
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
    """Softmax over classes with a margin on the row's own: −log(e^{scale·t} / (e^{scale·t} + Σ_{c≠own} e^{scale·s_c})).

    s_c is the similarity to class c, with proxies [C, K, D] that to its best sub-centre (the first of several: it alone
    has a gradient). t is that to the row's own class, made less by the margin; θ being the angle, s = cos θ:

    "none"     t = s: the normalised softmax (NormFace), of temperature 1/scale; it takes no margin.
    "cosface"  t = s − margin, .35 if it is None.
    "arcface"  t = cos(θ + margin), the margin in radians, at most π/2, .5 if it is None. Beyond θ + margin = π,
               s − margin·sin(margin) as in insightface and pytorch-metric-learning, so that it falls with θ all the
               way. Where |s| is 1 to rounding, θ has no direction to grow in, and t the gradient of s·cos(margin).

    At most 32 proxies per class. Columns that are no proxies are classes by themselves: labelled references (the
    sampled centres of a large classifier, say), the batch, and the samples under anchor="proxy". Several of the row's
    own class are summed, as in `proxy_nca`; a row without any adds 0.

    mean: over the rows. active_mean: over the rows that have a positive.
    Source: Wang et al. 2018 (arXiv 1801.09414), eq. 4; Deng et al. 2019 (arXiv 1801.07698), eq. 3; sub-centres: Deng et
    al. 2020 (ECCV), eq. 3; "none": NormFace, Wang et al. 2017 (arXiv 1704.06369), as in Zhai, Wu 2019 (arXiv
    1811.12649), eq. 4.
    """
    spec = _loss_options.margin_softmax(scale, margin, kind, normalize, reduction, anchor)
    _check_group(references)
    return _loss(spec, anchors, references, labels, reference_labels, exclude_self)


def soft_triple(
    anchors: Tensor,
    references: References,
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
    """SoftTriple: −log(e^{scale·(S_own − margin)} / (e^{scale·(S_own − margin)} + Σ_{c≠own} e^{scale·S_c})).

    S_c = Σ_k softmax_k(s_ck / gamma)·s_ck is the similarity to the K centres of class c, proxies [C, K, D], K at most
    32. gamma is a divisor, as in the official code (1/gamma in the paper, where it is a factor).

    To each value is added tau·Σ_{c, k<k'} √(2 − 2·w_ck·w_ck') / (C·K·(K−1)), which draws a class's centres together so
    that those it does not need coincide: half the mean distance ‖w_ck − w_ck'‖ of centres of length 1, whatever
    `normalize` says, 0 for K = 1 and with a gradient of 0 where two coincide. Other references have no such term.

    Columns that are no proxies are classes by themselves, as in `margin_softmax`.

    mean: over the rows. active_mean: over the rows that have a positive.
    Source: Qian et al. 2019 (arXiv 1909.05235), eq. 8 to 10.
    """
    spec = _loss_options.soft_triple(scale, gamma, margin, tau, normalize, reduction, anchor)
    _check_group(references)
    value = _loss(spec, anchors, references, labels, reference_labels, exclude_self)
    if isinstance(references, SplitProxies) and tau != 0:
        return value + tau * references.centre_spread(reduction == "none")
    if not isinstance(references, Tensor) or references.dim() == 2 or tau == 0:
        return value
    return value + tau * centre_spread(references)


def _loss(
    spec: LossSpec,
    anchors: Tensor,
    references: References,
    labels: Tensor,
    reference_labels: Tensor | None,
    exclude_self: bool,
) -> Tensor:
    """Check what needs no values, lay out the call, run the registered op."""
    check_vectors("anchors", anchors, "[M, D]", 2)
    _check_labels("labels", labels, anchors.shape[0], anchors.device)
    if isinstance(references, SplitReferences):
        _check_split(reference_labels, exclude_self)
        return references.loss(anchors, labels, spec)
    if references is None:
        if reference_labels is not None:
            raise ValueError("reference_labels: expected None where references is None, got a tensor")
        references, reference_labels, exclude_self = anchors, labels, True
    else:
        _check_references(anchors, references, reference_labels, exclude_self)
    return similarity_loss(anchors, references, labels, reference_labels, *spec, exclude_self)


def _check_references(
    anchors: Tensor, references: Tensor, reference_labels: Tensor | None, exclude_self: bool
) -> None:
    if references.dim() == 3:
        if reference_labels is not None:
            raise ValueError(
                "reference_labels: expected None, since references of shape [C, K, D] imply them, got a tensor"
            )
        check_vectors("references", references, "[C, K, D]", 3)
    else:
        check_vectors("references", references, "[N, D] or [C, K, D]", 2)
        if reference_labels is None:
            raise ValueError(
                f"reference_labels: expected int64 of shape [{references.shape[0]}] with references of shape [N, D], "
                "got None"
            )
        _check_labels("reference_labels", reference_labels, references.shape[0], anchors.device)
    if references.shape[-1] != anchors.shape[-1]:
        raise ValueError(
            f"references: expected last dimension {anchors.shape[-1]}, the anchors', got shape {list(references.shape)}"
        )
    if exclude_self and (references.dim() != 2 or references.shape[0] < anchors.shape[0]):
        raise ValueError(
            f"references: expected [N, D] with N >= {anchors.shape[0]}, the anchors first, where exclude_self is True, "
            f"got shape {list(references.shape)}"
        )
    if references.device != anchors.device:
        raise ValueError(
            f"references: expected on {anchors.device}, the anchors' device, got {references.device}"
        )


def _check_split(reference_labels: Tensor | None, exclude_self: bool) -> None:
    """What goes with proxies that lie in parts."""
    if reference_labels is not None:
        raise ValueError("reference_labels: expected None, since proxies imply them, got a tensor")
    if exclude_self:
        raise ValueError("exclude_self: expected False, since no proxy is a sample, got True")


def _check_group(references: References) -> None:
    """Of a loss to which the proxies of a class are one."""
    if isinstance(references, Tensor) and references.dim() == 3 and references.shape[1] > MOST_MEMBERS:
        raise ValueError(
            f"references: expected at most {MOST_MEMBERS} proxies per class, got shape {list(references.shape)}"
        )


def _check_labels(name: str, x: Tensor, count: int, device: torch.device) -> None:
    check_labels(name, x, count)
    if x.device != device:
        raise ValueError(f"{name}: expected on {device}, the anchors' device, got {x.device}")
