"""Lifted structure loss."""

from __future__ import annotations

from typing import Literal

from ccp_fast import functional as F
from ccp_fast._checks import Anchor, Normalize, Reduction
from ccp_fast.losses.base import MetricLoss


class LiftedStructureLoss(MetricLoss):
    """Positive pairs against all negatives of both of their samples; variant="anchor": of each anchor by itself.

    Sources: arXiv 1511.06452, eq. 4; variant="anchor": arXiv 1703.07737, eq. 8. Only the latter takes proxies or
    other references.
    Options: see `ccp_fast.functional.lifted_structure`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        *,
        margin: float = 1.0,
        variant: Literal["pair", "anchor"] = "pair",
        normalize: Normalize = None,
        reduction: Reduction = "mean",
        anchor: Anchor = "sample",
        num_classes: int | None = None,
        dim: int | None = None,
        proxies_per_class: int = 1,
    ) -> None:
        if variant == "pair" and num_classes is not None:
            raise ValueError('variant: expected "anchor" for a loss with proxies, got "pair"')
        super().__init__(
            F.lifted_structure,
            num_classes,
            dim,
            proxies_per_class,
            margin=margin,
            variant=variant,
            normalize=normalize,
            reduction=reduction,
            anchor=anchor,
        )
