"""Proxies of many classes, each rank owning those of some."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ccp_fast._checks import check_one_of
from ccp_fast.distributed.assigned import AssignedProxies
from ccp_fast.distributed.batch import Batch, SharedBatch, gather_batch
from ccp_fast.distributed.communication import Communicator
from ccp_fast.distributed.loss import RankWork, SumOverRanks, sharded_loss
from ccp_fast.distributed.row_sparse import RowSparse
from ccp_fast.distributed.sampling import Negatives, hard_scores, random_scores, sample_classes
from ccp_fast.ops.centre_spread import centre_spread
from ccp_fast.ops.similarity_shard import LossSpec
from ccp_fast.references import SplitProxies, SplitReferences

_BLOCK = 1024  # classes whose first proxies one seed draws


class ShardedProxies(nn.Module, SplitProxies):
    """K proxies of each of C classes, cut by class: each rank owns those of some, and of nobody else's.

    Takes the place of proxies [C, K, D] in every loss of `ccp_fast.functional`:

        proxies = ShardedProxies(num_classes=10_000_000, proxies_per_class=4, dim=512)
        loss = F.proxy_nca(embeddings, proxies, labels)   # this rank's samples, labels in [0, C)
        loss.backward()

    All ranks of the group call it together, each with samples of its own, however many (also none), and all get the
    loss of the whole batch; with reduction="none" the values of their own rows. The gradient of `proxies` is exact:
    that of one process with all proxies and the whole batch. So is that of the embeddings, times the number of ranks
    where gradients of the network are averaged over the ranks afterwards, as DDP and FSDP2 do (averaged=True): the
    average of the network's gradients is then exact. `proxies` takes no part in that: leave it out of DDP and FSDP2,
    and give it to an optimizer of the rank, which may be the network's own.

    Args:
        num_classes: C.
        proxies_per_class: K.
        dim: D.
        group: of the ranks; None: all of them, or this process alone where torch.distributed is not initialised.
        sample_rate: below 1, only so large a part of each rank's classes takes part in a training step: all that the
            batch has (also if these are more) and some others. `attach` the optimizer then. It needs memory and time
            for these alone, but it is another loss: a log-sum-exp over a part of the negatives is less than over all.
        negatives: the others: "random", every class being as likely, or "hard", those nearest to the batch, which
            takes a pass over all proxies.
        averaged: whether gradients of the embeddings' network are averaged over the ranks.
        shard_sizes: classes of each rank, in order; None: as even as can be, the first ranks having one more.
        seed: of the proxies' first values, normal of standard deviation 1/√D, which are the same for any number of
            ranks, and of the samples.
        device, dtype: of the proxies.

    Attributes:
        proxies: Parameter [C_r, K, D], those of this rank's classes.
        begin, end: its classes are begin, ..., end − 1.
        draws: samples drawn so far, a buffer: a run that is resumed goes on with the next one.

    Raises ValueError for sizes below 1 and for shard sizes that do not add up to C.
    """

    draws: Tensor  # [] int64

    def __init__(
        self,
        num_classes: int,
        proxies_per_class: int,
        dim: int,
        group: dist.ProcessGroup | None = None,
        sample_rate: float = 1.0,
        *,
        negatives: Negatives = "random",
        averaged: bool = True,
        shard_sizes: Sequence[int] | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("num_classes", num_classes),
            ("proxies_per_class", proxies_per_class),
            ("dim", dim),
        ):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        self.comm = Communicator(group)
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate: expected above 0 and at most 1, got {sample_rate}")
        check_one_of("negatives", negatives, ("random", "hard"))
        self.num_classes, self.averaged = num_classes, averaged
        self.sample_rate, self.negatives, self.seed = sample_rate, negatives, seed
        sizes = even_shards(num_classes, self.comm.size) if shard_sizes is None else list(shard_sizes)
        if len(sizes) != self.comm.size or sum(sizes) != num_classes or min(sizes) < 0:
            raise ValueError(
                f"shard_sizes: expected {self.comm.size} numbers of classes that add up to {num_classes}, got {sizes}"
            )
        self.bounds = [0, *accumulate(sizes)]  # classes of rank r: bounds[r] up to bounds[r + 1]
        shape = (self.end - self.begin, proxies_per_class, dim)
        self.proxies = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self._row_sparse = RowSparse(self.proxies)
        # Proxies that took part in the last loss, and classes of all ranks that did.
        self._last: tuple[Tensor, int] = (self.proxies, num_classes)
        self.reset_parameters()

    @property
    def begin(self) -> int:
        """The first class of this rank."""
        return self.bounds[self.comm.rank]

    @property
    def end(self) -> int:
        """The class after its last."""
        return self.bounds[self.comm.rank + 1]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the proxies anew: block by block of classes, so that it does not matter who owns them."""
        _, count, dim = self.proxies.shape
        for first in range(self.begin // _BLOCK * _BLOCK, self.end, _BLOCK):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first // _BLOCK)
            drawn = torch.randn(_BLOCK, count, dim, generator=generator) * dim**-0.5
            begin, end = max(first, self.begin), min(first + _BLOCK, self.end)
            self.proxies[begin - self.begin : end - self.begin] = drawn[begin - first : end - first]

    def attach(self, optimizer: Optimizer) -> None:
        """With sample_rate < 1, once: its steps move the sampled proxies alone, their momentum and decay included.

        The optimizer holds the sampled rows in place of the proxies from the loss to the step: save its state
        behind a step. See `ccp_fast.distributed.row_sparse`. ValueError if it does not hold the proxies.
        """
        self._row_sparse.attach(optimizer)

    def gather(self, embeddings: Tensor, labels: Tensor) -> Batch:
        """The samples of all ranks; ValueError, on every rank, for labels outside [0, C)."""
        batch = gather_batch(self.comm, embeddings, labels)
        # As with proxies in one piece: on a GPU labels are not waited for.
        if not labels.is_cuda:
            wrong = batch.labels[(batch.labels < 0) | (batch.labels >= self.num_classes)]
            if len(wrong):
                raise ValueError(
                    f"labels: expected values in [0, {self.num_classes}), the classes of all ranks, got {int(wrong[0])}"
                )
        return batch

    def loss(self, anchors: Tensor, labels: Tensor, spec: LossSpec) -> Tensor:
        """See `ccp_fast.references.SplitProxies`."""
        batch = self.gather(anchors, labels)
        proxies, own_labels, classes = self._taking_part(batch, spec)
        self._last = proxies, classes
        work = RankWork(
            comm=self.comm,
            batch=batch,
            labels=own_labels,
            classes=classes,
            spec=spec,
            scale=self._scale,
            overlap=anchors.is_cuda and self.comm.size > 1,
        )
        return sharded_loss(anchors, proxies, work)

    def _taking_part(self, batch: Batch, spec: LossSpec) -> tuple[Tensor, Tensor, int]:
        """Proxies [S, K, D], the classes of the batch's samples among them, and classes of all ranks."""
        own_labels = batch.labels - self.begin
        if self.sample_rate == 1 or not (self.training and torch.is_grad_enabled()):
            return self.proxies, own_labels, self.num_classes
        local = len(self.proxies)
        if self.negatives == "hard":
            scores = hard_scores(self.proxies, batch.embeddings, spec.how_normalized)
        else:
            scores = random_scores(local, self.seed, int(self.draws), self.comm.rank, self.proxies.device)
        self.draws += 1
        sample = sample_classes(batch.labels, self.bounds, self.comm.rank, self.sample_rate, scores)
        place = torch.full((local + 1,), -1, dtype=torch.int64, device=scores.device)  # the last: elsewhere
        place[sample.classes] = torch.arange(len(sample.classes), device=scores.device)
        outside = (own_labels < 0) | (own_labels >= local)
        own_labels = place[own_labels.masked_fill(outside, local)]
        return self._row_sparse.sample(sample.classes), own_labels, sample.total

    def assigned(self) -> SplitReferences:
        """See `ccp_fast.references.SplitProxies`."""
        return AssignedProxies(self)

    def centre_spread(self, per_row: bool) -> Tensor:
        """See `ccp_fast.references.SplitProxies`."""
        proxies, classes = self._last
        if len(proxies):
            share = centre_spread(proxies) * (len(proxies) / classes)
        else:
            share = proxies.sum().to(torch.promote_types(proxies.dtype, torch.float32))
        value: Tensor = SumOverRanks.apply(share, self.comm, "centre spread", per_row)  # type: ignore[no-untyped-call]
        return value

    def pairs(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings and labels of all ranks [M, D], [M], for a loss within the batch: every rank computes it in
        full and gets the exact gradient of its own samples, without another message.
        """
        batch = gather_batch(self.comm, embeddings, labels)
        everyone: Tensor = SharedBatch.apply(embeddings, batch, self.comm.rank, self._scale)  # type: ignore[no-untyped-call]
        return everyone, batch.labels

    @property
    def _scale(self) -> float:
        return float(self.comm.size) if self.averaged else 1.0

    def extra_repr(self) -> str:
        """Sizes, and which classes are here."""
        _, count, dim = self.proxies.shape
        return (
            f"num_classes={self.num_classes}, proxies_per_class={count}, dim={dim}, "
            f"classes {self.begin} to {self.end - 1} on rank {self.comm.rank} of {self.comm.size}"
        )


def even_shards(num_classes: int, ranks: int) -> list[int]:
    """Classes of each rank."""
    return [num_classes // ranks + (rank < num_classes % ranks) for rank in range(ranks)]
