"""Ctrl-C over several processes: all stop behind the same step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ccp_fast.training.interrupt import StopRequest


class AgreedStop:
    """Whether any process was asked to stop, known to all of them a step later.

    Behind every step each begins to send what it knows, and waits for what was sent behind the step before: that has
    arrived with the messages of the step itself, so nobody waits for it.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._sent: tuple[dist.Work, torch.Tensor] | None = None

    def behind_a_step(self) -> bool:
        """To be asked by all ranks, behind every step; the answer is the same on all."""
        before, known = self._sent, torch.tensor([int(self._request.requested)])
        work = dist.all_reduce(known, async_op=True)
        self._sent = (work, known)
        return before is not None and _arrived(*before)

    def close(self) -> None:
        """Wait for what is on its way."""
        if self._sent is not None:
            _arrived(*self._sent)


def _arrived(work: dist.Work, known: torch.Tensor) -> bool:
    work.wait()
    return bool(known)


@contextmanager
def agreed_stop() -> Iterator[AgreedStop]:
    """While entered, SIGINT and SIGTERM ask to stop."""
    with StopRequest(once=True) as request:
        stop = AgreedStop(request)
        yield stop
        stop.close()  # after an error nobody may be there to answer
