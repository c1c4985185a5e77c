"""Multi-Similarity loss."""

from __future__ import annotations

from typing import Literal

from ccp_fast import functional as F
from ccp_fast.losses.base import MetricLoss


class MultiSimilarityLoss(MetricLoss):
    """(1/α) log(1 + Σ_P e^{−α(s − base)}) + (1/β) log(1 + Σ_N e^{β(s − base)}) per row (arXiv 1904.06627, no mining).

    Options: see `ccp_fast.functional.multi_similarity`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        normalize: Literal["ball", "unit"] | None = "unit",
        reduction: Literal["active_mean", "mean", "anchor_mean", "sum", "none"] = "mean",
        anchor: Literal["sample", "proxy"] = "sample",
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
