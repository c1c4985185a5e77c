"""What each loss accepts for its options, and what they are to the registered operator.

One function per loss of `ccp_fast.functional`, of its name and with its options. The loss itself calls it, and so does
its module when it is made: an option that the loss would refuse is refused there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

from torch import Tensor

from ccp_fast._checks import (
    Anchor,
    Normalize,
    Reduction,
    as_number,
    check_anchor,
    check_normalize,
    check_one_of,
    check_positive,
    check_reduction,
    softmax_margin,
)
from ccp_fast.ops.similarity_shard import LossSpec


def contrastive(
    pos_margin: float,
    neg_margin: float,
    distance: str,
    normalize: Normalize,
    reduction: Reduction,
    anchor: Anchor,
) -> LossSpec:
    """A margin on each side."""
    check_one_of("distance", distance, ("l2", "cosine"))
    return _spec(
        f"contrastive_{distance}",
        {"pos_margin": pos_margin, "neg_margin": neg_margin},
        normalize,
        reduction,
        anchor,
    )


def triplet(margin: float, normalize: Normalize, reduction: Reduction, anchor: Anchor) -> LossSpec:
    """A margin between distances."""
    return _spec("triplet", {"margin": margin}, normalize, reduction, anchor)


def multi_similarity(
    alpha: float, beta: float, base: float, normalize: Normalize, reduction: Reduction, anchor: Anchor
) -> LossSpec:
    """Two factors, by which sums are divided."""
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    return _spec(
        "multi_similarity", {"alpha": alpha, "beta": beta, "base": base}, normalize, reduction, anchor
    )


def proxy_nca(
    temperature: float,
    variant: str,
    assignment: str,
    normalize: Normalize,
    reduction: Reduction,
    anchor: Anchor,
) -> LossSpec:
    """A temperature, and which proxies stand for which samples."""
    check_one_of("variant", variant, ("plus_plus", "original"))
    check_one_of("assignment", assignment, ("static", "dynamic"))
    check_positive("temperature", temperature)
    name = "proxy_nca" if variant == "plus_plus" else "proxy_nca_original"
    return _spec(name, {"temperature": temperature}, normalize, reduction, anchor)


def proxy_anchor(
    alpha: float, margin: float, normalize: Normalize, reduction: Reduction, anchor: Anchor
) -> LossSpec:
    """A factor and a margin."""
    check_positive("alpha", alpha)
    return _spec("proxy_anchor", {"alpha": alpha, "margin": margin}, normalize, reduction, anchor)


def lifted_structure(
    margin: float, variant: str, normalize: Normalize, reduction: Reduction, anchor: Anchor
) -> LossSpec:
    """For "pair" the operator computes one log-sum-exp over the negatives for each sample, hence reduction "none"."""
    check_one_of("variant", variant, ("pair", "anchor"))
    spec = _spec(
        "lifted_anchor" if variant == "anchor" else "negative_lse",
        {"margin": margin},
        normalize,
        reduction,
        anchor,
    )
    return spec if variant == "anchor" else spec._replace(reduction="none")


def margin_softmax(
    scale: float, margin: float | None, kind: str, normalize: Normalize, reduction: Reduction, anchor: Anchor
) -> LossSpec:
    """A margin of a cosine, or of an angle in radians; "none" has none."""
    margin = softmax_margin(kind, margin)
    check_positive("scale", scale)
    if kind == "arcface" and not 0 <= as_number("margin", margin) <= math.pi / 2:
        raise ValueError(f"margin: expected radians from 0 to π/2, got {margin!r}")
    name = "margin_softmax_arcface" if kind == "arcface" else "margin_softmax"
    return _spec(name, {"scale": scale, "margin": margin}, normalize, reduction, anchor)


def soft_triple(
    scale: float,
    gamma: float,
    margin: float,
    tau: float,
    normalize: Normalize,
    reduction: Reduction,
    anchor: Anchor,
) -> LossSpec:
    """All but tau, the weight of a term of its own."""
    check_positive("scale", scale)
    check_positive("gamma", gamma)
    as_number("tau", tau)
    return _spec(
        "soft_triple", {"scale": scale, "gamma": gamma, "margin": margin}, normalize, reduction, anchor
    )


_LOSSES = (
    contrastive,
    triplet,
    multi_similarity,
    proxy_nca,
    proxy_anchor,
    lifted_structure,
    margin_softmax,
    soft_triple,
)
_BY_NAME: dict[str, Callable[..., LossSpec]] = {loss.__name__: loss for loss in _LOSSES}


def check_options(function: Callable[..., Tensor], options: Mapping[str, object]) -> None:
    """ValueError for options, others having their defaults, that a loss of `ccp_fast.functional` would refuse.

    Of other functions nothing is known.
    """
    if function.__module__ != "ccp_fast.functional":
        return
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    defaults = {p.name: p.default for p in keywords if p.name != "exclude_self"}
    _BY_NAME[function.__name__](**{**defaults, **options})


def _spec(
    name: str, parameters: Mapping[str, float], normalize: Normalize, reduction: Reduction, anchor: Anchor
) -> LossSpec:
    """With the options that all losses share; parameters in the order of csrc/losses/registry.h."""
    check_normalize(normalize)
    check_reduction(reduction)
    check_anchor(anchor)
    numbers = [as_number(parameter, value) for parameter, value in parameters.items()]
    return LossSpec(name, numbers, normalize or "none", reduction, anchor == "proxy")
