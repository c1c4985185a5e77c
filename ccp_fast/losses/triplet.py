"""Triplet loss."""

from __future__ import annotations

from ccp_fast import functional as F
from ccp_fast._checks import Anchor, Normalize, Reduction
from ccp_fast.losses.base import MetricLoss


class TripletLoss(MetricLoss):
    """(d_ap − d_an + margin)₊ over all triplets of an anchor, a positive and a negative reference.

    Options: see `ccp_fast.functional.triplet`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        *,
        margin: float = 0.05,
        normalize: Normalize = "ball",
        reduction: Reduction = "active_mean",
        anchor: Anchor = "sample",
        num_classes: int | None = None,
        dim: int | None = None,
        proxies_per_class: int = 1,
    ) -> None:
        super().__init__(
            F.triplet,
            num_classes,
            dim,
            proxies_per_class,
            margin=margin,
            normalize=normalize,
            reduction=reduction,
            anchor=anchor,
        )
