"""The batch of all ranks: every rank has its own samples, and sees those of the others without a gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccp_fast._checks import FLOATS, check_labels
from ccp_fast.distributed.communication import Communicator


class Batch(NamedTuple):
    """Samples of all ranks, in the order of the ranks."""

    embeddings: Tensor  # [M, D], without gradient
    labels: Tensor  # [M] int64
    sizes: list[int]  # of each rank's part

    def own(self, rank: int) -> slice:
        """Where a rank's samples are."""
        begin = sum(self.sizes[:rank])
        return slice(begin, begin + self.sizes[rank])


def gather_batch(comm: Communicator, embeddings: Tensor, labels: Tensor) -> Batch:
    """Two collectives: the sizes (on a GPU they are waited for), and the rows, each with its label.

    Raises ValueError on every rank if one has embeddings of another width or dtype than the first, and on this one
    for labels that do not fit.
    """
    check_labels("labels", labels, len(embeddings))
    kind = [len(embeddings), embeddings.shape[1], FLOATS.index(embeddings.dtype)]
    every = comm.gather_integers(kind, embeddings.device, "batch sizes")
    for rank, (_, dim, dtype) in enumerate(every):
        if [dim, dtype] != every[0][1:]:
            raise ValueError(
                f"embeddings: expected {FLOATS[every[0][2]]} of {every[0][1]} components on every rank, as on rank 0, "
                f"got {FLOATS[dtype]} of {dim} on rank {rank}"
            )
    sizes = [row[0] for row in every]
    mine = embeddings.detach().contiguous()
    if comm.size == 1:
        return Batch(mine, labels, sizes)
    packed = torch.cat([mine.view(torch.uint8), labels.contiguous()[:, None].view(torch.uint8)], dim=1)
    rows = comm.gather_rows(packed, sizes, "batch")
    width = rows.shape[1] - labels.element_size()
    return Batch(
        rows[:, :width].contiguous().view(embeddings.dtype),
        rows[:, width:].contiguous().view(torch.int64).squeeze(1),
        sizes,
    )


class SharedBatch(torch.autograd.Function):
    """The embeddings of all ranks, for a loss that every rank computes in full.

    All ranks have the same gradient of it, and each takes the part of its own samples: nothing is sent back.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, batch: Batch, rank: int, scale: float) -> Tensor:
        """`embeddings` are this rank's part of `batch`."""
        ctx.own, ctx.scale = batch.own(rank), scale
        return batch.embeddings.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Own rows."""
        return grad[ctx.own] * ctx.scale, None, None, None
