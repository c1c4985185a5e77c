"""Which classes lie nearest to a class: the one place that searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ccp_fast.evaluation import nearest

Search = Literal["torch", "faiss"]


def nearest_classes(vectors: Tensor, seeds: Sequence[int], count: int, search: Search) -> list[list[int]]:
    """Of each seed: itself, then the count − 1 other classes nearest to it by Euclidean distance.

    vectors [C, D], one per class. "torch" is exact, of equals the lower number first, the same on any device.
    """
    queries = vectors[torch.tensor(seeds, device=vectors.device)]
    found = _faiss(vectors, queries, count) if search == "faiss" else _torch(vectors, queries, count)
    # A seed is among its nearest, unless others coincide with it.
    others = ([c for c in row if c != seed] for seed, row in zip(seeds, found, strict=True))
    return [[seed, *row[: count - 1]] for seed, row in zip(seeds, others, strict=True)]


def _torch(vectors: Tensor, queries: Tensor, count: int) -> list[list[int]]:
    indices: list[list[int]] = nearest(queries, count, vectors, normalize=None).indices.tolist()
    return indices


def _faiss(vectors: Tensor, queries: Tensor, count: int) -> list[list[int]]:
    import faiss

    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors.float().cpu().numpy())
    indices: list[list[int]] = index.search(queries.float().cpu().numpy(), count)[1].tolist()
    return indices
