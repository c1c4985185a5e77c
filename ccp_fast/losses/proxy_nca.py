"""Proxy-NCA and ProxyNCA++."""

from __future__ import annotations

from typing import Literal

from ccp_fast import functional as F
from ccp_fast._checks import Anchor, Normalize, Reduction
from ccp_fast.losses.base import MetricLoss


class ProxyNCALoss(MetricLoss):
    """−log(Σ_P e^{−d²/T} / Σ e^{−d²/T}) to the proxies the loss owns, T being the temperature.

    Source: arXiv 2004.01113, eq. 6; variant="original": arXiv 1703.07464, eq. 6.
    With assignment="dynamic" only the number of proxies matters, num_classes · proxies_per_class, and not whose
    they are; nothing is assigned where ref_emb takes their place: `ccp_fast.functional.proxy_nca`.
    It is customary to train the proxies at up to 100 times the network's rate; CCP uses the same rate.
    Options: see `ccp_fast.functional.proxy_nca`; proxies and references: see `MetricLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        proxies_per_class: int = 1,
        *,
        temperature: float = 1 / 9,
        variant: Literal["plus_plus", "original"] = "plus_plus",
        assignment: Literal["static", "dynamic"] = "static",
        normalize: Normalize = "unit",
        reduction: Reduction = "mean",
        anchor: Anchor = "sample",
    ) -> None:
        super().__init__(
            F.proxy_nca,
            num_classes,
            dim,
            proxies_per_class,
            temperature=temperature,
            variant=variant,
            assignment=assignment,
            normalize=normalize,
            reduction=reduction,
            anchor=anchor,
        )
