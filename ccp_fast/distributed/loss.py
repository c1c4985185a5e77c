"""A loss whose proxies are spread over the ranks by class: what each rank computes, and what it tells the others.

Rows that are samples meet the proxies of every rank. Each rank lets all M rows of the batch gather a state from its own
proxies; an all-to-all hands the states of a row to the rank whose sample it is, which puts them together; an all-gather
tells everyone what backward needs of each row. Both messages are of O(M) numbers whatever the number of classes.
Rows that are proxies meet the whole batch where they live: only six sums are exchanged.
In backward every rank has the gradients of its own proxies, and its share of the embeddings' gradients, which a
reduce-scatter adds up for the rank whose sample it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ccp_fast.distributed.batch import Batch
from ccp_fast.distributed.communication import Communicator
from ccp_fast.ops import similarity_shard as ops
from ccp_fast.ops.similarity_loss import SAVED_PER_ROW
from ccp_fast.ops.similarity_shard import LossSpec, Shard
from ccp_fast.reference.pairs import norm, normalise


@dataclass(frozen=True)
class RankWork:
    """What one rank has to do of a loss."""

    comm: Communicator
    batch: Batch
    labels: Tensor  # [M] int64: the class's place among the local proxies, or outside of them
    classes: int  # of all ranks
    spec: LossSpec
    scale: float  # of the embeddings' gradients
    overlap: bool  # two kernels in backward, so that the first one's result travels while the second runs


def sharded_loss(embeddings: Tensor, proxies: Tensor, work: RankWork) -> Tensor:
    """The loss of all samples of all ranks, the same on each; with reduction "none" this rank's rows."""
    value: Tensor = _ShardedLoss.apply(embeddings, proxies, work)  # type: ignore[no-untyped-call]
    return value


class _ShardedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, proxies: Tensor, work: RankWork) -> Tensor:
        comm, spec, batch = work.comm, work.spec, work.batch
        shard = Shard(batch.embeddings, proxies.detach(), work.labels, None)
        if spec.needs_positives:
            shard = shard._replace(positives=_positive_distances(shard, work))
        states, active = ops.states(shard, spec)
        if spec.proxy_rows:
            row_state, parts = ops.finish(states[None], len(batch.labels), spec)
            totals = comm.sum(parts.sum(1), "loss")
            rows = work.classes * proxies.shape[1]
        else:
            every = comm.exchange(states, batch.sizes, "row states")
            row_state, parts = ops.finish(every, work.classes * proxies.shape[1], spec)
            row_state, totals = _tell_everyone(work, row_state, parts)
            rows = len(batch.labels)
        normalizer = _normalizer(totals, rows, spec.reduction)
        ctx.work, ctx.positives = work, shard.positives
        # Alone, the batch is the embeddings themselves: saved, so that a change of theirs is noticed.
        ctx.save_for_backward(embeddings, proxies, row_state, normalizer, active)
        if spec.reduction == "none":
            return (parts[0] + parts[1]).to(states.dtype)
        return (totals[:2] / normalizer).sum().to(states.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        work: RankWork = ctx.work
        comm, spec, sizes = work.comm, work.spec, work.batch.sizes
        _, proxies, row_state, normalizer, active = ctx.saved_tensors
        shard = Shard(work.batch.embeddings, proxies.detach(), work.labels, ctx.positives)
        need_embeddings, need_proxies = ctx.needs_input_grad[:2]
        if spec.reduction == "none" and not spec.proxy_rows:
            grad_loss = comm.gather_rows(grad_loss.contiguous(), sizes, "gradients of rows")
        counts = None
        if spec.needs_positives:
            counts = comm.all_reduce(ops.counts(shard, spec), "pairs of positives")

        def gradients(need_anchors: bool, need_proxies: bool) -> tuple[Tensor, Tensor]:
            saved = (row_state, normalizer, active)
            return ops.backward(grad_loss, shard, counts, *saved, spec, need_anchors, need_proxies)

        def send(grad: Tensor) -> Callable[[], Tensor]:
            wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
            return comm.scatter_sum_rows(wide, sizes, "gradients of embeddings")

        # Collectives need every rank: what is sent does not depend on whether this rank's embeddings want it.
        if work.overlap and need_proxies:
            wait = send(gradients(True, False)[0])
            grad_proxies = gradients(False, True)[1]
        else:
            grad_anchors, grad_proxies = gradients(True, need_proxies)
            wait = send(grad_anchors)
        grad_embeddings = wait().mul_(work.scale).to(shard.anchors.dtype)
        return (
            grad_embeddings if need_embeddings else None,
            grad_proxies if need_proxies else None,
            None,
        )


def _tell_everyone(work: RankWork, row_state: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """What backward needs of all rows, [3, M], and the sums of the rows' parts, [6]; in one message."""
    if work.comm.size == 1:
        return row_state, parts.sum(1)
    sizes = work.batch.sizes
    mine, most = row_state.shape[1], max(sizes)
    message = parts.new_zeros(SAVED_PER_ROW * most + ops.ROW_PARTS)
    message[: SAVED_PER_ROW * mine] = row_state.T.reshape(-1)
    message[SAVED_PER_ROW * most :] = parts.sum(1)
    every = work.comm.gather(message, "loss and rows")
    rows = every[:, : SAVED_PER_ROW * most].view(len(sizes), most, SAVED_PER_ROW)
    everyone = torch.cat([of_rank[:n] for of_rank, n in zip(rows, sizes, strict=True)])
    return everyone.T.to(row_state.dtype).contiguous(), every[:, SAVED_PER_ROW * most :].sum(0)


def _normalizer(totals: Tensor, rows: int, reduction: str) -> Tensor:
    """[2] float64: divisors of the positive and the negative sum. A sum of no terms is 0, and so is its mean."""
    if reduction == "anchor_mean":
        return totals.new_full((2,), max(rows, 1))
    if reduction in ("mean", "active_mean"):
        counts = totals[4:6] if reduction == "mean" else totals[2:4]
        return torch.where(counts > 0, counts, 1.0)
    return totals.new_ones(2)


def _positive_distances(shard: Shard, work: RankWork) -> Tensor:
    """[M, K]: of every sample to the proxies of its class, told by the rank that has them."""
    normalize = work.spec.how_normalized
    dtype = torch.promote_types(torch.promote_types(shard.anchors.dtype, shard.proxies.dtype), torch.float32)
    here = (shard.labels >= 0) & (shard.labels < len(shard.proxies))
    samples = normalise(shard.anchors[here].to(dtype), normalize)
    own = normalise(shard.proxies[shard.labels[here]].to(dtype), normalize)
    distances = samples.new_zeros((len(shard.labels), shard.proxies.shape[1]))
    distances[here] = norm(samples[:, None] - own)
    return work.comm.all_reduce(distances, "distances of positives")


class SumOverRanks(torch.autograd.Function):
    """Shares of the ranks, added up.

    Every rank has the whole gradient of the result, and so has its share; or, with own_use, only that of what it
    makes of the result itself, and these add up.
    """

    @staticmethod
    def forward(ctx: Any, share: Tensor, comm: Communicator, name: str, own_use: bool) -> Tensor:
        """Of any shape."""
        ctx.comm, ctx.name, ctx.own_use = comm, name, own_use
        return comm.all_reduce(share, name) if comm.size > 1 else share.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Of the share."""
        return ctx.comm.all_reduce(grad, ctx.name) if ctx.own_use else grad, None, None, None
