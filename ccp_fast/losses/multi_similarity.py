"""Multi-Similarity loss."""

from __future__ import annotations

from ccp_fast import functional as F
from ccp_fast._checks import Anchor, Normalize, Reduction
from ccp_fast.losses.base import MetricLoss


class MultiSimilarityLoss(MetricLoss):
    """Per row (1/alpha)·log(1 + Σ_P e^{−alpha(s−base)}) + (1/beta)·log(1 + Σ_N e^{beta(s−base)}), no mining.

    Source: arXiv 1904.06627, eq. 15.
    Options: see `ccp_fast.functional.multi_similarity`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        normalize: Normalize = "unit",
        reduction: Reduction = "mean",
        anchor: Anchor = "sample",
        num_classes: int | None = None,
        dim: int | None = None,
        proxies_per_class: int = 1,
    ) -> None:
        super().__init__(
            F.multi_similarity,
            num_classes,
            dim,
            proxies_per_class,
            alpha=alpha,
            beta=beta,
            base=base,
            normalize=normalize,
            reduction=reduction,
            anchor=anchor,
        )
