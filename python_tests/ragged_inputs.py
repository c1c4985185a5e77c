"""Inputs of k-center that its tests share."""

from __future__ import annotations

import torch
from torch import Tensor


def offsets_of(sizes: list[int]) -> Tensor:
    """Boundaries of segments of these sizes."""
    return torch.tensor([0, *sizes]).cumsum(0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Numbers without ties."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(*shape: int, seed: int, limit: int = 2) -> Tensor:
    """Squared distances of small integers are exact, so every tie is a true one; duplicates abound."""
    return torch.randint(-limit, limit + 1, shape, generator=torch.Generator().manual_seed(seed)).float()
