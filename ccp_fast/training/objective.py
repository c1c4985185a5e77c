"""Losses by name, with the options of the paper where it gives some; `published` has those that depend on others."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ccp_fast.losses import (
    ContrastiveLoss,
    LiftedStructureLoss,
    MarginSoftmaxLoss,
    MetricLoss,
    MultiSimilarityLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    TripletLoss,
)
from ccp_fast.training.config import nearest
from ccp_fast.training.errors import UserError
from ccp_fast.training.settings import Config


class Preset(NamedTuple):
    """A loss and its options."""

    title: str
    make: Callable[..., MetricLoss]
    options: dict[str, float | str | None]
    needs_proxies: bool = False  # also in plain training

    @property
    def name(self) -> str:
        """The title without what explains it."""
        return self.title.partition(" (")[0]


# C1 and C2 are the two contrastive losses of arXiv 2209.09060; C2 has the margins given there for Cars196.
PRESETS = {
    "c1": Preset(
        "C1 (cosine contrastive)",
        ContrastiveLoss,
        {
            "distance": "cosine",
            "pos_margin": 0.0,
            "neg_margin": 0.5,
            "normalize": "unit",
            "reduction": "anchor_mean",
        },
    ),
    "c2": Preset(
        "C2 (Euclidean contrastive)",
        ContrastiveLoss,
        {
            "distance": "l2",
            "pos_margin": 0.2652,
            "neg_margin": 0.5409,
            "normalize": "ball",
            "reduction": "active_mean",
        },
    ),
    "triplet": Preset(
        "Triplet", TripletLoss, {"margin": 0.1, "normalize": "ball", "reduction": "active_mean"}
    ),
    "multi_similarity": Preset(
        "Multi-Similarity", MultiSimilarityLoss, {"alpha": 2.0, "beta": 50.0, "base": 0.5}
    ),
    # On unit vectors, whose distances end at 2, all negatives of a batch weigh nearly the same and little is learned.
    "lifted_structure": Preset(
        "Lifted structure", LiftedStructureLoss, {"margin": 1.0, "variant": "anchor", "normalize": None}
    ),
    "proxy_nca": Preset("ProxyNCA++", ProxyNCALoss, {"temperature": 1 / 9, "variant": "plus_plus"}, True),
    "proxy_anchor": Preset("Proxy-Anchor", ProxyAnchorLoss, {"alpha": 32.0, "margin": 0.1}, True),
    "soft_triple": Preset(
        "SoftTriple", SoftTripleLoss, {"scale": 20.0, "gamma": 0.1, "margin": 0.01, "tau": 0.2}, True
    ),
    "margin_softmax": Preset("Margin softmax", MarginSoftmaxLoss, {"scale": 64.0, "kind": "arcface"}, True),
}


_SIZES = ("num_classes", "dim", "proxies_per_class")  # of a loss's proxies: no options


def build_loss(
    config: Config,
    num_classes: int,
    *,
    proxies: bool = False,
    allow_proxy_losses: bool = True,
    references: bool = False,
) -> MetricLoss:
    """The loss that is named, with proxies where they are asked for or the loss needs them.

    references: it will get references beside the batch. UserError for a bad option, also one that does not go
    with references, or a loss that needs proxies where none are allowed.
    """
    preset = PRESETS[config.loss.name]
    if preset.needs_proxies and not allow_proxy_losses:
        fit = ", ".join(name for name, other in PRESETS.items() if not other.needs_proxies)
        raise UserError(
            f"loss.name: expected a loss between samples ({fit}) with method {config.method!r}, "
            f"got {config.loss.name!r}"
        )
    possible = [name for name in inspect.signature(preset.make).parameters if name not in _SIZES]
    for name in config.loss.given_options:
        if name not in possible:
            where = "options" if name in config.loss.options else f"options_of.{config.loss.name}"
            hint = nearest(name, possible) or f"; {config.loss.name} has {', '.join(possible)}"
            raise UserError(f"unknown key 'loss.{where}.{name}'{hint}")
    count = config.loss.proxies_per_class
    if count is not None and config.method != "plain":
        raise UserError(
            f"loss.proxies_per_class: expected none with method {config.method!r}, only with plain, got {count}"
        )
    arguments: dict[str, Any] = {**preset.options, **config.loss.given_options}
    if proxies:
        count = config.ccp.proxies_per_class
    if count is not None or preset.needs_proxies:
        arguments |= {"num_classes": num_classes, "dim": config.model.dim}
    if count is not None:
        arguments["proxies_per_class"] = count
    try:  # the loss itself knows what its options may be
        loss = preset.make(**arguments)
        batch = torch.eye(2, config.model.dim), torch.arange(2) % num_classes
        values = [loss.pairs(*batch)]
        if loss.proxies is not None:
            values.append(loss(*batch))
        if references:
            values.append(loss(*batch, *batch))
    except (TypeError, ValueError) as error:
        raise UserError(f"loss.options: {error}") from None
    if any(value.dim() for value in values):
        raise UserError("loss.options.reduction: expected a sum or mean, got 'none'")
    return loss
