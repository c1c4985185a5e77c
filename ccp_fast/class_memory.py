"""Class memory: the last embeddings of each class, a pool for CCP that costs no forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ccp_fast._checks import at_least, check_batch
from ccp_fast.alternating.pool import EmbeddedPool

# So many embeddings wait for their slots: a batch costs two copies, and sorting by class is shared by many batches.
_RECENT = 4096


class ClassMemory(nn.Module):
    """The last `size` embeddings of each class, as training computed them.

        memory = ccp_fast.ClassMemory(num_classes=11_318, size=7, dim=128)
        embeddings = model(images)
        memory.store_(embeddings, labels)
        ...
        ccp.project(lambda k: memory.pool())  # instead of embedding a pool anew

    A ring of `size` slots per class. `store_` does not wait for a GPU, and what is in the slots is a function of what
    was stored, in its order: of a class with more than `size` samples in a batch the last ones stay. All of it is in
    `state_dict`.

    What differs from a pool that is embedded anew (`embed_pool`): an embedding is of the weights of the step that
    stored it, up to as many steps old as `size` samples of its class take to come; it is of an augmented image; and
    it was computed in training mode, so with the batch's statistics in BatchNorm and with dropout. A class that was
    not seen yet has no entries: `AlternatingProjections.project` lets it keep its proxies. Where that is of no use, as
    before the first step, embed a pool.

    Each rank of a distributed run has to store the same, the embeddings gathered from all ranks, or the ranks choose
    different proxies.

    Args:
        num_classes: C; labels are 0 to C − 1.
        size: slots per class, at most the `pool_size` of the CCP algorithm (b in the paper).
        dim: D of the embeddings.
        dtype: of the slots; a choice of proxies works in that of the proxies.

    Raises ValueError for counts below 1.
    """

    slots: Tensor  # [C, size, D]; the s-th embedding of a class that comes is put into slot s mod size
    counts: Tensor  # [C] int64, how many have come
    _recent: Tensor  # [R, D], the first _waiting of them came last and are not in their slots yet
    _recent_labels: Tensor  # [R] int64

    def __init__(self, num_classes: int, size: int, dim: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name, number in (("num_classes", num_classes), ("size", size), ("dim", dim)):
            at_least(name, number, 1)
        self.num_classes, self.size, self.dim = num_classes, size, dim
        self.register_buffer("slots", torch.zeros(num_classes, size, dim, dtype=dtype))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("_recent", torch.empty(_RECENT, dim, dtype=dtype), persistent=False)
        self.register_buffer("_recent_labels", torch.empty(_RECENT, dtype=torch.int64), persistent=False)
        self._waiting = 0

    @torch.no_grad()
    def store_(self, embeddings: Tensor, labels: Tensor) -> None:
        """Store a batch [B, D] with labels [B] int64, over the oldest entries of its classes.

        Raises ValueError for another shape, dtype or device, and on the CPU for a label out of range.
        """
        self._check(embeddings, labels)
        if self._waiting + len(labels) > _RECENT:
            self._put_into_slots()
        if len(labels) > _RECENT:
            self._put(embeddings, labels)
            return
        place = slice(self._waiting, self._waiting + len(labels))
        self._recent[place] = embeddings
        self._recent_labels[place] = labels
        self._waiting = place.stop

    def pool(self) -> EmbeddedPool:
        """All that is stored, by class; in a class by slot. Waits for a GPU.

        Once every slot is filled the embeddings are the memory itself, not a copy: to be used before the next
        `store_`, as `AlternatingProjections.project` does.
        """
        sizes = self.stored().clamp_(max=self.size)
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        filled = torch.arange(self.size, device=sizes.device) < sizes[:, None]
        embeddings = self.slots.flatten(0, 1) if filled.all() else self.slots[filled]
        return EmbeddedPool(embeddings, offsets)

    def stored(self) -> Tensor:
        """How many embeddings of each class ever came, [C] int64."""
        self._put_into_slots()
        return self.counts.clone()

    def reset_(self) -> None:
        """Forget everything."""
        self.slots.zero_()
        self.counts.zero_()
        self._waiting = 0

    def extra_repr(self) -> str:
        """Sizes."""
        return f"num_classes={self.num_classes}, size={self.size}, dim={self.dim}"

    def _put_into_slots(self) -> None:
        if self._waiting:
            self._put(self._recent[: self._waiting], self._recent_labels[: self._waiting])
            self._waiting = 0

    @torch.no_grad()
    def _put(self, embeddings: Tensor, labels: Tensor) -> None:
        order = labels.argsort(stable=True)
        classes = labels[order]
        place = torch.arange(len(order), device=labels.device)
        left = torch.searchsorted(classes, classes, right=True) - place  # of the class, this one included
        self.counts.index_add_(0, labels, torch.ones_like(labels))
        slots = (self.counts[classes] - left) % self.size
        # Where a class comes round, all that fall on a slot write the last of them: in any order the result is one.
        last = order[place + (left - 1) // self.size * self.size]
        self.slots[classes, slots] = embeddings[last].to(self.slots.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._put_into_slots()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._waiting = 0
        super()._load_from_state_dict(*arguments)

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        check_batch(embeddings, labels, self.dim, self.counts.device)
        if labels.device.type == "cpu" and len(labels):
            numbers = labels.tolist()  # of a batch, that is faster than an operator
            least, most = min(numbers), max(numbers)
            if least < 0 or most >= self.num_classes:
                bad = least if least < 0 else most
                raise ValueError(f"labels: expected 0 to {self.num_classes - 1}, got {bad}")
