"""Embeddings to choose proxies from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Pool(Protocol):
    """Which samples to embed, sorted by class, as `ccp_fast.samplers.ClassPoolSampler.pool` draws them."""

    @property
    def indices(self) -> Tensor:
        """[N] int64, of samples of the data set."""

    @property
    def offsets(self) -> Tensor:
        """[C + 1] int64: the samples of class c are indices[offsets[c]:offsets[c + 1]]."""


class EmbeddedPool(NamedTuple):
    """Candidates for the proxies, sorted by class."""

    embeddings: Tensor  # [N, D]
    offsets: Tensor  # [C + 1] int64: class c is embeddings[offsets[c]:offsets[c + 1]]


@torch.no_grad()
def embed_pool(
    model: nn.Module,
    images_of: Callable[[Tensor], Tensor],
    pool: Pool,
    batch_size: int = 256,
    *,
    batches: int = 1,
) -> EmbeddedPool:
    """Embed a pool batch by batch, in eval mode; afterwards every module is in the mode it was in.

    images_of: from indices [n] to the model's input for those samples, not augmented, on the model's device.
    batches: at least so many pass through the model, the last ones empty.
    """
    parts_of = list(torch.split(pool.indices, batch_size))
    parts_of += [pool.indices[:0]] * (batches - len(parts_of))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        parts = [model(images_of(indices)) for indices in parts_of]
    finally:
        for module, training in modes:
            module.training = training
    embeddings = torch.cat(parts)
    return EmbeddedPool(embeddings, pool.offsets.to(embeddings.device))
