"""SoftTriple loss."""

from __future__ import annotations

from ccp_fast import functional as F
from ccp_fast._checks import Anchor, Normalize, Reduction
from ccp_fast.losses.base import MetricLoss


class SoftTripleLoss(MetricLoss):
    """Cross-entropy of scale·(S_c − margin·1_own) over classes, S_c = Σ_k softmax_k(s_ck / gamma)·s_ck.

    tau weighs a term that draws the proxies of a class together. Source: arXiv 1909.05235, eq. 8 to 10.
    It is customary to train the proxies at 100 times the network's rate; CCP uses the same rate.
    Options: see `ccp_fast.functional.soft_triple`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        proxies_per_class: int = 10,
        *,
        scale: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        tau: float = 0.2,
        normalize: Normalize = "unit",
        reduction: Reduction = "mean",
        anchor: Anchor = "sample",
    ) -> None:
        super().__init__(
            F.soft_triple,
            num_classes,
            dim,
            proxies_per_class,
            scale=scale,
            gamma=gamma,
            margin=margin,
            tau=tau,
            normalize=normalize,
            reduction=reduction,
            anchor=anchor,
        )
