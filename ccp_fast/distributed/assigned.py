"""Proxy-NCA's dynamic assignment with sharded proxies: every sample is stood for by the nearest proxy of any rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ccp_fast.distributed.loss import SumOverRanks
from ccp_fast.neighbors import nearest_reference
from ccp_fast.ops.similarity_loss import similarity_loss
from ccp_fast.ops.similarity_shard import LossSpec
from ccp_fast.references import SplitReferences

if TYPE_CHECKING:
    from ccp_fast.distributed.proxies import ShardedProxies


class AssignedProxies(SplitReferences):
    """The proxies p(x_j) of the batch's samples, with the samples' labels."""

    def __init__(self, proxies: ShardedProxies) -> None:
        self._proxies = proxies

    def loss(self, anchors: Tensor, labels: Tensor, spec: LossSpec) -> Tensor:
        """Every rank computes it in full, of the batch of all ranks; M·D numbers are added up.

        Raises ValueError for reduction="none", of which no rank has the whole gradient.
        """
        if spec.reduction == "none":
            raise ValueError(
                'reduction: expected a sum or mean with assignment="dynamic" and sharded proxies, got "none"'
            )
        everyone, every_label = self._proxies.pairs(anchors, labels)
        assigned = self._nearest(everyone.detach(), spec)
        return similarity_loss(
            everyone,
            assigned,
            every_label,
            every_label,
            spec.name,
            spec.parameters,
            spec.normalize,
            spec.reduction,
            spec.proxy_rows,
            False,
        )

    def _nearest(self, samples: Tensor, spec: LossSpec) -> Tensor:
        """[M, D] on every rank, told by the rank that has each."""
        comm, flat = self._proxies.comm, self._proxies.proxies.flatten(0, 1)
        if len(flat):
            indices, distances = nearest_reference(samples, flat.detach(), normalize=spec.how_normalized)
            mine = flat[indices]
        else:
            distances = samples.new_full((len(samples),), torch.inf)
            mine = flat.new_zeros((len(samples), flat.shape[1])) + flat.sum()
        # Of equal distances the lowest rank's, which has the lowest classes.
        nearest_rank = comm.gather(distances.double(), "distances to proxies").argmin(0)
        share = torch.where((nearest_rank == comm.rank)[:, None], mine, 0.0)
        assigned: Tensor = SumOverRanks.apply(share, comm, "assigned proxies", False)  # type: ignore[no-untyped-call]
        return assigned
