"""The module around a loss whose proxies are sharded."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor

from ccp_fast.distributed.proxies import ShardedProxies
from ccp_fast.losses.base import MetricLoss, Option


class ShardedLoss(MetricLoss):
    """A function of `ccp_fast.functional` with its options and sharded proxies; all ranks call it together.

        proxies = ShardedProxies(num_classes, proxies_per_class, dim)
        loss = ShardedLoss(F.proxy_nca, proxies, temperature=1 / 9)

    Every rank gets the loss of the samples of all ranks: `forward` to the proxies, `pairs` within the batch. Where a
    `MetricLoss` is expected, as by `AlternatingProjections`, it is one whose proxies are those of this rank's classes.

    Args:
        function: of `ccp_fast.functional`.
        proxies: of all ranks. Its parameter is this module's `proxies`; the module itself is not a part of this one.
        options: keyword arguments of `function`.
    """

    def __init__(self, function: Callable[..., Tensor], proxies: ShardedProxies, **options: Option) -> None:
        default = inspect.signature(function).parameters["normalize"].default
        super().__init__(function, None, None, 1, **{"normalize": default, **options})
        self.proxies = proxies.proxies
        self._sharded = (proxies,)  # a tuple: one parameter is not to have two names

    @property
    def sharded(self) -> ShardedProxies:
        """The proxies with what they know of the other ranks."""
        return self._sharded[0]

    def reset_parameters(self) -> None:
        """Draw the proxies anew."""
        self.sharded.reset_parameters()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        exclude_self: bool = False,
    ) -> Tensor:
        """Loss of this rank's embeddings [m, D] and those of all others to all proxies; labels in [0, C).

        Raises ValueError for other references: a memory or a second batch is a rank's own.
        """
        if ref_emb is not None or ref_labels is not None or exclude_self:
            raise ValueError("ref_emb: expected None, the sharded proxies, got other references")
        return self.function(embeddings, self.sharded, labels, None, **self.options)

    def pairs(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The same loss within the batch of all ranks, computed in full by each; not with reduction="none"."""
        if self.options.get("reduction") == "none":
            raise ValueError('reduction: expected a sum or mean for a loss of all ranks, got "none"')
        everyone, every_label = self.sharded.pairs(embeddings, labels)
        return self.function(everyone, None, every_label, None, **self.options)
