"""Random bits as a function of a seed and a place, the same under every version of NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_bits(seed: int, place: tuple[int, ...], size: int) -> NDArray[np.uint64]:
    """``size`` random 64-bit integers; independent for different ``place``."""
    # NumPy keeps these raw streams stable (NEP 19), which it does not promise of Generator's methods.
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)).random_raw(size)


def permutation(seed: int, place: tuple[int, ...], size: int) -> NDArray[np.int64]:
    """A random order of 0..size-1."""
    return random_bits(seed, place, size).argsort(kind="stable")
