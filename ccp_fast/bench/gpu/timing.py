"""Times of steps on a GPU: CUDA events, a cold L2 cache, rotated inputs, steps that take turns.

A sample is one call. Before it the L2 cache is overwritten, often enough that the CPU has issued the whole step
before the GPU gets to it: what is measured is what the step takes on a GPU that is kept busy, as in training. What
the CPU takes to issue it is measured beside it. A step that waits for the GPU shows its waiting.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ccp_fast.bench.timing import Times, samples_in_a_turn, take_turns

_HEAD_START = 1.5  # of the flushes over the time to issue a step
_MOST_FLUSHES = 200  # about 20 ms: what takes longer to issue waits for the GPU anyway
_TRIES = 3


class Device(Protocol):
    """What timing needs of `gpu.device.Gpu`."""

    def flush(self, times: int = 1) -> None:
        """Overwrite the cache."""

    def mark(self) -> Any:
        """An event."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between events."""

    def wait(self) -> None:
        """For the device."""


@dataclass(frozen=True)
class Estimate:
    """Of one step."""

    issue: float  # seconds until the call returns
    total: float  # until the device is done
    flushes: int  # before each sample


def interleave(
    steps: Mapping[str, Sequence[Callable[[], object]]],
    seconds: float,
    device: Device,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Times], dict[str, float]]:
    """Times of warmed-up steps, and the seconds to issue each; rounds as in `bench.timing.interleave`.

    Each name comes with the same step on several sets of inputs, used in turn.
    """
    one_flush = _flush_seconds(device)
    estimates = {name: _estimate(sets[0], device, clock, one_flush) for name, sets in steps.items()}
    slowest = max(estimate.total for estimate in estimates.values())
    rotations: dict[str, Iterator[Callable[[], object]]] = {
        name: itertools.cycle(sets) for name, sets in steps.items()
    }

    def turn(name: str) -> list[float]:
        estimate, events = estimates[name], []
        for _ in range(samples_in_a_turn(estimate.total, slowest)):
            step = next(rotations[name])
            device.flush(estimate.flushes)
            start = device.mark()
            step()
            events.append((start, device.mark()))
        device.wait()
        return [device.seconds(start, end) for start, end in events]

    times = take_turns({name: partial(turn, name) for name in steps}, seconds, clock)
    return times, {name: estimate.issue for name, estimate in estimates.items()}


def _flush_seconds(device: Device, times: int = 10) -> float:
    device.flush()
    start = device.mark()
    device.flush(times)
    end = device.mark()
    device.wait()
    return max(device.seconds(start, end) / times, 1e-9)


def _estimate(
    step: Callable[[], object], device: Device, clock: Callable[[], float], one_flush: float
) -> Estimate:
    issue = total = math.inf
    for _ in range(_TRIES):
        device.wait()
        start = clock()
        step()
        returned = clock()
        device.wait()
        issue, total = min(issue, returned - start), min(total, clock() - start)
    flushes = math.ceil(_HEAD_START * issue / one_flush)
    return Estimate(issue, max(total, 1e-9), min(max(flushes, 1), _MOST_FLUSHES))
