"""Processes that decode images."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ccp_fast.training.errors import UserError

T = TypeVar("T")

MOST = 16  # by default: more seldom help, and each holds batches in memory


def worker_count(wanted: int | None) -> int:
    """What is wanted; None: one for each core that this process may use, within reason."""
    return min(MOST, len(os.sched_getaffinity(0))) if wanted is None else wanted


def as_it_is(answer: T) -> T:
    """Instead of torch's own conversion of what a worker sends."""
    return answer


def received(answers: Iterable[T]) -> Iterator[T]:
    """What workers send; UserError where one is killed while it sends."""
    try:
        yield from answers
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        raise worker_lost(error) from None


def tells_of_a_lost_worker(error: RuntimeError) -> bool:
    """Of torch, which raises it from the handler of a signal, wherever the trainer then is."""
    return str(error).startswith("DataLoader worker (pid")


def worker_lost(error: Exception) -> UserError:
    """The sentence about it. From here on torch's handler, which would raise again while all are ended, is off."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    what = " ".join(str(error).split()).rstrip(".")
    return UserError(
        f"a process that decodes images was ended ({what}): memory may be too small for so many (data.workers); "
        "a run that was training goes on with ccp-train --resume"
    )
