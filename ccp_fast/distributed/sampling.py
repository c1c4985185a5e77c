"""Which classes of a shard take part in a step: all that the batch has, and some of the others."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ccp_fast._checks import Normalize
from ccp_fast.neighbors import nearest_reference

Negatives = Literal["random", "hard"]


class Sample(NamedTuple):
    """Sampled classes of this rank."""

    classes: Tensor  # [S] int64, ascending, counted from the shard's first class
    total: int  # sampled classes of all ranks


def sample_size(classes: int, positives: int, rate: float) -> int:
    """How many of a shard's classes take part, of which so many are in the batch."""
    return max(positives, math.ceil(rate * classes))


def sample_classes(labels: Tensor, bounds: list[int], rank: int, rate: float, scores: Tensor) -> Sample:
    """The batch's classes and those of lowest score [C_r] among the others.

    labels: of all ranks, so that each rank knows how many classes every other one samples.
    """
    present: Tensor = torch.unique(labels)
    cuts = torch.searchsorted(present, torch.tensor(bounds, device=present.device)).tolist()
    sizes = [
        sample_size(end - begin, last - first, rate)
        for (begin, end), (first, last) in zip(pairwise(bounds), pairwise(cuts), strict=True)
    ]
    positives = present[cuts[rank] : cuts[rank + 1]] - bounds[rank]
    scores = scores.index_fill(0, positives, -torch.inf)  # first of all
    chosen = scores.topk(sizes[rank], largest=False, sorted=False).indices
    return Sample(chosen.sort().values, sum(sizes))


def random_scores(classes: int, seed: int, draw: int, rank: int, device: torch.device) -> Tensor:
    """[C_r] uniform: every class is as likely as any other to be a negative."""
    # Large odd factors keep the ranges of seeds, draws and ranks apart.
    mixed = (seed * 0x9E3779B97F4A7C15 + draw * 0xD1342543DE82EF95 + rank) % 2**63
    generator = torch.Generator(device).manual_seed(mixed)
    return torch.rand(classes, generator=generator, device=device)


@torch.no_grad()
def hard_scores(proxies: Tensor, embeddings: Tensor, normalize: Normalize) -> Tensor:
    """[C_r]: distance of a class's nearest proxy to the nearest sample of the batch."""
    if len(embeddings) == 0 or len(proxies) == 0:
        return torch.zeros(len(proxies), device=proxies.device)
    distances = nearest_reference(proxies.flatten(0, 1), embeddings, normalize=normalize).distances
    nearest: Tensor = distances.view(len(proxies), -1).amin(1).float()
    return nearest
