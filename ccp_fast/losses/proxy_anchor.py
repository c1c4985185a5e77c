"""Proxy-Anchor loss."""

from __future__ import annotations

from ccp_fast import functional as F
from ccp_fast._checks import Anchor, Normalize, Reduction
from ccp_fast.losses.base import MetricLoss


class ProxyAnchorLoss(MetricLoss):
    """log(1 + Σ_P e^{−alpha(s−margin)}) + log(1 + Σ_N e^{alpha(s+margin)}) per proxy the loss owns.

    Source: arXiv 2003.13911, eq. 4.
    It is customary to train the proxies at 100 times the network's rate; CCP uses the same rate.
    Options: see `ccp_fast.functional.proxy_anchor`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        proxies_per_class: int = 1,
        *,
        alpha: float = 32.0,
        margin: float = 0.1,
        normalize: Normalize = "unit",
        reduction: Reduction = "mean",
        anchor: Anchor = "proxy",
    ) -> None:
        super().__init__(
            F.proxy_anchor,
            num_classes,
            dim,
            proxies_per_class,
            alpha=alpha,
            margin=margin,
            normalize=normalize,
            reduction=reduction,
            anchor=anchor,
        )
