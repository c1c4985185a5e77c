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

    vectors [C, D], one per class. Exact, of equals the lower number first, the same on any device and with "faiss",
    which looks for candidates on the CPU.
    """
    if search == "faiss":
        vectors = vectors.cpu()
    queries = vectors[torch.tensor(seeds, device=vectors.device)]
    backend: Literal["ccp_fast", "faiss"] = "faiss" if search == "faiss" else "ccp_fast"
    found = nearest(queries, count, vectors, normalize=None, backend=backend).indices.tolist()
    # A seed is among its nearest, unless others coincide with it.
    others = ([c for c in row if c != seed] for seed, row in zip(seeds, found, strict=True))
    return [[seed, *row[: count - 1]] for seed, row in zip(seeds, others, strict=True)]
