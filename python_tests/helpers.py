"""Inputs that several tests share."""

from __future__ import annotations

import torch
from torch import Tensor


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random vectors with norms on both sides of 1, the edge of the ball."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * 0.6).to(dtype)
