"""Arguments that several public functions share; every refusal is one sentence."""

from __future__ import annotations

import torch
from torch import Tensor


def check_count(name: str, k: object) -> None:
    """An integer of at least 1, symbolic or not."""
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise ValueError(f"{name}: expected an integer, got {k!r}")
    if k < 1:
        raise ValueError(f"{name}: expected at least 1, got {k}")


def check_batch(embeddings: Tensor, labels: Tensor, dim: int, device: torch.device) -> None:
    """Floating-point embeddings [B, dim] and int64 labels [B], both on the device of the memory they go into."""
    if embeddings.dim() != 2 or embeddings.shape[1] != dim or not embeddings.is_floating_point():
        got = f"{str(embeddings.dtype).removeprefix('torch.')} of shape {list(embeddings.shape)}"
        raise ValueError(f"embeddings: expected floating point of shape [B, {dim}], got {got}")
    if labels.dtype != torch.int64 or labels.shape != embeddings.shape[:1]:
        got = f"{str(labels.dtype).removeprefix('torch.')} of shape {list(labels.shape)}"
        raise ValueError(f"labels: expected int64 of shape [{len(embeddings)}], got {got}")
    for name, tensor in (("embeddings", embeddings), ("labels", labels)):
        if tensor.device != device:
            raise ValueError(f"{name}: expected on {device}, the memory's device, got {tensor.device}")


def check_normalize(normalize: object) -> None:
    """One of the three ways."""
    if normalize not in ("ball", "unit", None):
        raise ValueError(f'normalize: expected "ball", "unit" or None, got {normalize!r}')
