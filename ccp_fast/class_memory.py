"""Class memory: the last embeddings of each class, a pool for CCP that costs no forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccp_fast._checks import check_count
from ccp_fast.alternating.pool import EmbeddedPool


class ClassMemory(nn.Module):
    """The last `size` embeddings of each class, as training computed them.

        memory = ccp_fast.ClassMemory(num_classes=11_318, size=7, dim=128)
        embeddings = model(images)
        memory.store_(embeddings, labels)
        ...
        ccp.project(lambda k: memory.pool())  # instead of embedding a pool anew

    A ring of `size` slots per class. `store_` writes a batch in a few calls of torch without waiting for a GPU, and
    its result is a function of what was stored, in its order: of a class with more than `size` samples in a batch the
    last ones stay. All of it is in `state_dict`.

    What differs from a pool that is embedded anew (`embed_pool`): an embedding is of the weights of the step that
    stored it, up to as many steps old as `size` samples of its class take to come; it is of an augmented image; and
    it was computed in training mode, so with the batch's statistics in BatchNorm and with dropout. A class that was
    not seen yet has no entries: `AlternatingProjections.project` lets it keep its proxies. Where it has none of use
    yet, as before the first step, embed a pool.

    Each rank of a distributed run has to store the same, the embeddings gathered from all ranks, or the ranks choose
    different proxies.

    Args:
        num_classes: C; labels are 0 to C − 1.
        size: slots per class, at most the `pool_size` of the CCP algorithm (b in the paper).
        dim: D of the embeddings.
        dtype: of the slots; a choice of proxies works in that of the proxies.

    Attributes:
        stored: [C] int64, how many embeddings of each class were ever stored.

    Raises ValueError for counts below 1.
    """

    embeddings: Tensor  # [C, size, D], in slot (s mod size) of a class the s-th that was stored
    stored: Tensor  # [C] int64

    def __init__(self, num_classes: int, size: int, dim: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for name, number in (("num_classes", num_classes), ("size", size), ("dim", dim)):
            check_count(name, number)
        self.num_classes, self.size, self.dim = num_classes, size, dim
        self.register_buffer("embeddings", torch.zeros(num_classes, size, dim, dtype=dtype))
        self.register_buffer("stored", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def store_(self, embeddings: Tensor, labels: Tensor) -> None:
        """Store a batch [B, D] with labels [B] int64, over the oldest entries of its classes.

        Raises ValueError for another shape, dtype or device, and on the CPU for a label out of range, before
        anything is stored.
        """
        self._check(embeddings, labels)
        order = labels.argsort(stable=True)
        classes = labels[order]
        place = torch.arange(len(order), device=labels.device)
        left = torch.searchsorted(classes, classes, right=True) - place  # of the class, this one included
        self.stored.index_add_(0, labels, torch.ones_like(labels))
        slots = (self.stored[classes] - left) % self.size
        # Where a class comes round, all that fall on a slot write the last of them: in any order the result is one.
        last = order[place + (left - 1) // self.size * self.size]
        self.embeddings[classes, slots] = embeddings.detach()[last].to(self.embeddings.dtype)

    def pool(self) -> EmbeddedPool:
        """All that is stored, by class; in a class by slot. Waits for a GPU.

        Once every slot is filled the embeddings are the memory itself, not a copy: to be used before the next
        `store_`, as `AlternatingProjections.project` does.
        """
        sizes = self.stored.clamp(max=self.size)
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        filled = torch.arange(self.size, device=sizes.device) < sizes[:, None]
        embeddings = self.embeddings.flatten(0, 1) if filled.all() else self.embeddings[filled]
        return EmbeddedPool(embeddings, offsets)

    @property
    def complete(self) -> bool:
        """Whether every class has an entry. Waits for a GPU."""
        return bool((self.stored > 0).all())

    def reset_(self) -> None:
        """Forget everything."""
        self.embeddings.zero_()
        self.stored.zero_()

    def extra_repr(self) -> str:
        """Sizes."""
        return f"num_classes={self.num_classes}, size={self.size}, dim={self.dim}"

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.dim() != 2 or embeddings.shape[1] != self.dim or not embeddings.is_floating_point():
            got = f"{str(embeddings.dtype).removeprefix('torch.')} of shape {list(embeddings.shape)}"
            raise ValueError(f"embeddings: expected floating point of shape [B, {self.dim}], got {got}")
        if labels.dtype != torch.int64 or labels.shape != embeddings.shape[:1]:
            got = f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
            raise ValueError(f"labels: expected int64 of shape [{len(embeddings)}], got {got}")
        for name, tensor in (("embeddings", embeddings), ("labels", labels)):
            if tensor.device != self.stored.device:
                raise ValueError(
                    f"{name}: expected on {self.stored.device}, the memory's device, got {tensor.device}"
                )
        if labels.device.type == "cpu" and len(labels):
            least, most = (int(number) for number in labels.aminmax())
            if least < 0 or most >= self.num_classes:
                bad = least if least < 0 else most
                raise ValueError(f"labels: expected 0 to {self.num_classes - 1}, got {bad}")
