"""Cross-batch memory: the embeddings of past batches as further references of a loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccp_fast._checks import check_batch
from ccp_fast.losses import MetricLoss


class CrossBatchMemory(nn.Module):
    """pair_weight·loss(batch, batch) + memory_weight·loss(batch, memory), for any loss of the package.

        memory = ccp_fast.CrossBatchMemory(size=4096, dim=128, warm_up=1000)
        memory(loss, model(images), labels).backward()

    The memory is a queue of the last `size` embeddings with their labels; no gradient flows into it, and slots
    not filled yet take no part. A call in training mode stores its batch; in eval mode the queue is only read.

    Weights drift slowly once training has settled, and so do embeddings: old ones stay good references. Before
    that they are not, hence the warm-up: its batches are stored, but the loss is that within the batch alone.

    A sample is not paired with the copy that the same call makes of it: that pair is left out by its place,
    whatever distances say. What the queue holds of the same image from an earlier batch, once it reaches back more
    than an epoch, is another sample: a positive. Batches may have any sizes, none included; of a batch larger than
    the memory the last `size` samples are stored. The queue keeps its own dtype, float32 by default, also under
    autocast.

    All that later calls depend on is in `state_dict`: `queue`, `queue_labels`, and as extra state [pointer,
    fill, steps]. Under torch.compile compile the model, not this module: where the queue stands is a Python
    number. Each rank of a distributed run has a memory of its own batches.

    Args:
        size: of the queue, at least 1.
        dim: D of the embeddings.
        warm_up: training calls before the memory is used.
        pair_weight: of the loss within the batch; 0: not computed.
        memory_weight: of the loss to the memory.
        include_batch: True: the batch itself is among the references, as copies without gradient, each left out
            for the sample it is of, and with it the memory holds `size` samples; with pair_weight=0 this is
            pytorch-metric-learning's class. False: the references are earlier batches alone.
        dtype: of the queue.

    Source: Wang et al. 2020 (arXiv 1912.06798), algorithm 1; both losses and the batch within the memory as in
    the code published with it, which leaves out all positives of cosine above 1 − 1e-5, not the batch's copies.
    """

    queue: Tensor  # [size, D]
    queue_labels: Tensor  # [size] int64

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        warm_up: int = 0,
        pair_weight: float = 1.0,
        memory_weight: float = 1.0,
        include_batch: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, number, least in (("size", size, 1), ("dim", dim, 1), ("warm_up", warm_up, 0)):
            if number < least:
                raise ValueError(f"{name}: expected at least {least}, got {number}")
        self.size, self.dim, self.warm_up = size, dim, warm_up
        self.pair_weight, self.memory_weight = pair_weight, memory_weight
        self.include_batch = include_batch
        self.register_buffer("queue", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("queue_labels", torch.zeros(size, dtype=torch.int64))
        self.pointer = 0  # the slot that is written next
        self.fill = 0  # slots that hold an embedding
        self.steps = 0  # training calls so far

    def forward(self, loss: MetricLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings [B, D] with labels [B] int64, which are stored in training mode.

        Raises ValueError for embeddings or labels of another shape, dtype or device, and before the first batch is
        stored, whatever the warm-up, for a loss that takes no references beside the batch.
        """
        check_batch(embeddings, labels, self.dim, self.queue.device)
        if self.steps == 0:
            self._check_takes_references(loss)
        value = self._loss(loss, embeddings, labels)
        if self.training:
            self.enqueue_(embeddings, labels)
            self.steps += 1
        return value

    @torch.no_grad()
    def enqueue_(self, embeddings: Tensor, labels: Tensor) -> None:
        """Store a batch [B, D] with labels [B], over the oldest entries where the queue is full."""
        check_batch(embeddings, labels, self.dim, self.queue.device)
        count = min(len(labels), self.size)
        until_end = min(count, self.size - self.pointer)
        for slots, new in ((self.queue, embeddings), (self.queue_labels, labels)):
            last = new[len(new) - count :]
            slots[self.pointer : self.pointer + until_end] = last[:until_end]
            slots[: count - until_end] = last[until_end:]
        self.pointer = (self.pointer + count) % self.size
        self.fill = min(self.fill + count, self.size)

    def stored(self) -> tuple[Tensor, Tensor]:
        """A copy of what the queue holds, the oldest first: embeddings [fill, D] and labels [fill]."""
        queue, labels = (self._newest(slots, self.fill) for slots in (self.queue, self.queue_labels))
        return torch.cat(queue), torch.cat(labels)

    def reset_(self) -> None:
        """Empty the queue and begin the warm-up again."""
        self.pointer = self.fill = self.steps = 0

    def get_extra_state(self) -> Tensor:
        """[pointer, fill, steps] int64, for `state_dict`."""
        return torch.tensor([self.pointer, self.fill, self.steps])

    def set_extra_state(self, state: Tensor) -> None:
        """What `get_extra_state` gave; ValueError for numbers that are none of a queue of this size."""
        pointer, fill, steps = (int(number) for number in state)
        if not (0 <= pointer < self.size and 0 <= fill <= self.size and steps >= 0):
            raise ValueError(
                f"state: expected a pointer below size = {self.size}, a fill up to it and steps >= 0, "
                f"got {pointer}, {fill} and {steps}"
            )
        self.pointer, self.fill, self.steps = pointer, fill, steps

    def extra_repr(self) -> str:
        """Sizes and options."""
        return (
            f"size={self.size}, dim={self.dim}, warm_up={self.warm_up}, pair_weight={self.pair_weight}, "
            f"memory_weight={self.memory_weight}, include_batch={self.include_batch}"
        )

    def _loss(self, loss: MetricLoss, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.steps < self.warm_up:
            return loss.pairs(embeddings, labels)
        references, reference_labels = self._references(embeddings, labels)
        to_memory: Tensor = self.memory_weight * loss(
            embeddings, labels, references, reference_labels, exclude_self=self.include_batch
        )
        if self.pair_weight == 0:
            return to_memory
        return self.pair_weight * loss.pairs(embeddings, labels) + to_memory

    @torch.no_grad()
    def _check_takes_references(self, loss: MetricLoss) -> None:
        """Try it on two vectors: otherwise it would show after the warm-up, in the middle of a run."""
        if not hasattr(loss, "pairs"):
            kind = f"{type(loss).__module__}.{type(loss).__qualname__}"
            raise ValueError(f"loss: expected one of ccp_fast.losses, got a {kind}")
        vectors = torch.eye(2, self.dim, dtype=self.queue.dtype, device=self.queue.device)
        labels = torch.arange(2, device=self.queue.device)
        try:
            loss(vectors, labels, vectors.clone(), labels, exclude_self=self.include_batch)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"loss: expected one that takes references beside the batch, got {loss} ({error})"
            ) from error

    def _references(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D] and [N], as copies: with include_batch the batch, then what it leaves of the queue."""
        if not self.include_batch:
            return self.stored()
        kept = min(self.fill, max(self.size - len(labels), 0))
        own = embeddings.detach().to(self.queue.dtype)
        return (
            torch.cat([own, *self._newest(self.queue, kept)]),
            torch.cat([labels, *self._newest(self.queue_labels, kept)]),
        )

    def _newest(self, slots: Tensor, count: int) -> list[Tensor]:
        """The last `count` entries in order, as one or two pieces of the ring."""
        start = self.pointer - count
        return [slots[start : self.pointer]] if start >= 0 else [slots[start:], slots[: self.pointer]]
