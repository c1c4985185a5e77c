"""References of a loss that are not one tensor: what `ccp_fast.functional` asks of them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ccp_fast.ops.similarity_shard import LossSpec


class SplitReferences(ABC):
    """References that compute a loss themselves: each function hands its own part of the work over."""

    @abstractmethod
    def loss(self, anchors: Tensor, labels: Tensor, spec: LossSpec) -> Tensor:
        """The loss of all anchors against all of these."""


class SplitProxies(SplitReferences):
    """Proxies [C, K, D] that lie in parts, as those of `ccp_fast.distributed.ShardedProxies` do."""

    @abstractmethod
    def centre_spread(self, per_row: bool) -> Tensor:
        """SoftTriple's regulariser, the mean over all classes. per_row: it is added to values of rows."""

    @abstractmethod
    def assigned(self) -> SplitReferences:
        """For each anchor the proxy nearest to it: Proxy-NCA's dynamic assignment."""
