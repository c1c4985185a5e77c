"""Keeping other processes out of a folder that is being written to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()  # descriptors of the locks of this process


@contextmanager
def only_process(folder: Path, otherwise: Exception) -> Iterator[None]:
    """While entered, no other process gets in: it raises `otherwise`. A killed process loses its lock at once."""
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise otherwise from None
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.discard(file.fileno())


def _close_those_of_the_parent() -> None:
    # A fork has the parent's descriptors, and with them its lock: workers that end a little later than a killed
    # trainer would keep the next one out.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_those_of_the_parent)
