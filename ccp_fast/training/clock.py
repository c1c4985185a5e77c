"""Where the time goes: seconds by phase, of a CPU or of a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

STEP = ("data", "forward", "loss", "backward", "projection", "optimizer", "reinitialisation")
PHASES = (*STEP, "evaluation", "saving")


class PhaseClock:
    """Wall seconds spent in each phase, and the CPU seconds of the process while any phase but saving was running.

    CPU seconds hardly move when something else runs on the machine: equal-time comparisons on the CPU go by them. How
    often a run saves itself is no matter of what is compared.

    A GPU is only handed its work, and lags behind. Its phases begin and end with events in its stream, so each has
    the time that passes there, at work or waiting for the CPU, and all together that of the wall. Events are read when
    they have happened: nobody waits for them but who asks for the seconds.

    Args:
        device: what computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._timeline: Timeline = CudaTimeline(device) if device.type == "cuda" else CpuTimeline()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.cpu_seconds = 0.0
        self._running: list[str] = []  # the innermost last
        # The mark, and the CPU seconds, where a phase began or ended last.
        self._last: tuple[Any, float] = (None, 0.0)
        self._unread: list[tuple[str, Any, Any]] = []  # phase, and the marks around a part of it

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what is inside the `with`; a phase inside another is taken out of the outer one."""
        depth = len(self._running)
        if depth == 0 and self._unread and self._timeline.has_passed(self._unread[-1][2]):
            self._read()
        self._mark()
        self._running.append(phase)
        try:
            yield
        finally:
            self._mark()
            del self._running[depth:]

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds by phase, up to where one last began or ended."""
        if self._unread:
            self._timeline.wait_for(self._unread[-1][2])
            self._read()
        return self._seconds

    @property
    def total(self) -> float:
        """Wall seconds over all phases."""
        return sum(self.seconds.values())

    def shares(self) -> dict[str, float]:
        """Fraction of the total by phase."""
        total = self.total or 1.0
        return {phase: seconds / total for phase, seconds in self.seconds.items()}

    def state_dict(self) -> dict[str, object]:
        """So that a resumed run counts on."""
        return {"seconds": dict(self.seconds), "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Count on from `state_dict`."""
        seconds, cpu_seconds = state["seconds"], state["cpu_seconds"]
        assert isinstance(seconds, dict)
        assert isinstance(cpu_seconds, float)
        self._unread.clear()
        # Older checkpoints know of fewer phases.
        self._seconds, self.cpu_seconds = dict.fromkeys(PHASES, 0.0) | seconds, cpu_seconds

    def _mark(self) -> None:
        """What has passed since the last mark is of the innermost phase."""
        now, cpu = self._timeline.mark(), time.process_time()
        if self._running:
            self._unread.append((self._running[-1], self._last[0], now))
            if self._running[-1] != "saving":
                self.cpu_seconds += cpu - self._last[1]
        self._last = now, cpu

    def _read(self) -> None:
        for phase, start, end in self._unread:
            self._seconds[phase] += self._timeline.seconds(start, end)
        self._unread.clear()


class Timeline(Protocol):
    """Points in time as a device sees them."""

    def mark(self) -> Any:
        """Here, behind all that the device was given so far."""

    def has_passed(self, mark: Any) -> bool:
        """Whether the device has got there."""

    def wait_for(self, mark: Any) -> None:
        """Until it has."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between two marks that have passed."""


class CpuTimeline:
    """Of the program itself: a mark is a time, and has passed."""

    def mark(self) -> float:
        """Now."""
        return time.perf_counter()

    def has_passed(self, mark: float) -> bool:
        """Always."""
        return True

    def wait_for(self, mark: float) -> None:
        """Not at all."""

    def seconds(self, start: float, end: float) -> float:
        """Their difference."""
        return end - start


class CudaTimeline:
    """Of the stream in which torch puts a GPU's work: marks are events in it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """An event behind what is in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def has_passed(self, mark: torch.cuda.Event) -> bool:
        """Ask, without waiting."""
        return bool(mark.query())

    def wait_for(self, mark: torch.cuda.Event) -> None:
        """Until it has happened."""
        mark.synchronize()

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """To half a microsecond."""
        return float(start.elapsed_time(end)) * 1e-3
