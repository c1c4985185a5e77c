"""Ctrl-C between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """The run was asked to stop and has saved itself."""

    def __init__(self, path: Path, step: int, command: str = "ccp-train --resume") -> None:
        self.step = step
        super().__init__(f"stopped and saved at step {step}; go on with: {command} {path}")


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `requested`; a second one acts as usual.

    once: it does nothing. torchrun passes on to its processes what a terminal or Slurm may have sent them already, and
    kills those that have not ended after 30 seconds.
    """

    def __init__(self, *, once: bool = False) -> None:
        self.requested, self._once = False, once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        """Take the signals over; outside of the main thread there are none to take."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        self._give_back()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._once:
            self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
