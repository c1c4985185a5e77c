"""Arguments that several public functions share; every refusal is one sentence."""

from __future__ import annotations

import torch


def check_count(name: str, k: object) -> None:
    """An integer of at least 1, symbolic or not."""
    if isinstance(k, bool) or not isinstance(k, (int, torch.SymInt)):
        raise ValueError(f"{name}: expected an integer, got {k!r}")
    if k < 1:
        raise ValueError(f"{name}: expected at least 1, got {k}")


def check_normalize(normalize: object) -> None:
    """One of the three ways."""
    if normalize not in ("ball", "unit", None):
        raise ValueError(f'normalize: expected "ball", "unit" or None, got {normalize!r}')
