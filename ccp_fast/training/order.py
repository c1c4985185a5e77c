"""An order without meaning that depends on names alone; parts of a sequence."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

WHOLE = slice(None)  # of a batch, where a process trains on all of it


def shuffled(purpose: str, names: Sequence[str]) -> list[int]:
    """Positions of the names by the hash of (purpose, name): no generator's state, the same on every machine.

    Names of files that are not UTF-8 are hashed as the bytes that they are.
    """
    texts = [f"{purpose}/{name}".encode("utf-8", "surrogateescape") for name in names]
    hashes = [hashlib.sha256(text).digest() for text in texts]
    return sorted(range(len(names)), key=lambda i: (hashes[i], i))
