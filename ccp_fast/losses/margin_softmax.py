"""Softmax losses with a margin: NormFace, CosFace, ArcFace and their sub-centre versions."""

from __future__ import annotations

from typing import Literal

from ccp_fast import functional as F
from ccp_fast._checks import Anchor, Normalize, Reduction
from ccp_fast.losses.base import MetricLoss


class MarginSoftmaxLoss(MetricLoss):
    """Cross-entropy of scale·cos over the classes of the proxies the loss owns, with a margin on the sample's own.

    kind="cosface" (arXiv 1801.09414, eq. 4) subtracts the margin from the cosine, "arcface" (arXiv 1801.07698, eq. 3)
    adds it to the angle, in radians; "none" is the normalised softmax (arXiv 1704.06369). Of several proxies per class
    the best counts.
    Options: see `ccp_fast.functional.margin_softmax`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        proxies_per_class: int = 1,
        *,
        scale: float = 64.0,
        margin: float | None = None,
        kind: Literal["none", "cosface", "arcface"] = "none",
        normalize: Normalize = "unit",
        reduction: Reduction = "mean",
        anchor: Anchor = "sample",
    ) -> None:
        super().__init__(
            F.margin_softmax,
            num_classes,
            dim,
            proxies_per_class,
            scale=scale,
            margin=margin,
            kind=kind,
            normalize=normalize,
            reduction=reduction,
            anchor=anchor,
        )
