"""Contrastive loss."""

from __future__ import annotations

from typing import Literal

from ccp_fast import functional as F
from ccp_fast._checks import Anchor, Normalize, Reduction
from ccp_fast.losses.base import MetricLoss


class ContrastiveLoss(MetricLoss):
    """Margins on the distances of positive and negative pairs.

    l2: Σ_P (d − pos_margin)₊ + Σ_N (neg_margin − d)₊; cosine: Σ_P (1 − s − pos_margin)₊ + Σ_N (s −
    neg_margin)₊, s being the dot product of the vectors as `normalize` leaves them. The default form is C2
    of arXiv 2209.09060, whose margins differ from data set to data set; C1 is distance="cosine", normalize="unit",
    reduction="anchor_mean".
    Options: see `ccp_fast.functional.contrastive`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        *,
        pos_margin: float = 0.0,
        neg_margin: float = 0.5,
        distance: Literal["l2", "cosine"] = "l2",
        normalize: Normalize = "ball",
        reduction: Reduction = "active_mean",
        anchor: Anchor = "sample",
        num_classes: int | None = None,
        dim: int | None = None,
        proxies_per_class: int = 1,
    ) -> None:
        super().__init__(
            F.contrastive,
            num_classes,
            dim,
            proxies_per_class,
            pos_margin=pos_margin,
            neg_margin=neg_margin,
            distance=distance,
            normalize=normalize,
            reduction=reduction,
            anchor=anchor,
        )
