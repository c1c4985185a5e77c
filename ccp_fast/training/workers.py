"""Processes that decode images."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

MOST = 16  # by default: more seldom help, and each holds batches in memory


def worker_count(wanted: int | None) -> int:
    """What is wanted; None: one for each core that this process may use, within reason."""
    return min(MOST, len(os.sched_getaffinity(0))) if wanted is None else wanted


def as_it_is(answer: T) -> T:
    """Instead of torch's own conversion of what a worker sends."""
    return answer
