"""Times of steps that take turns, so that whatever the machine does meanwhile falls on all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

SHORTEST_SAMPLE = 1e-3  # seconds; a quicker step is repeated within one sample
MOST_SAMPLES = 5  # per round and step, while the slowest step takes its turn
FEWEST_ROUNDS = 3


@dataclass
class Times:
    """Seconds per call of one step: all samples, and the median of each round."""

    samples: list[float] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)

    def percentile(self, p: float) -> float:
        """Of all samples."""
        return float(np.percentile(self.samples, p))


def interleave(
    steps: Mapping[str, Callable[[], object]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time warmed-up steps in rounds for about `seconds`, at least three rounds.

    In each round every step has a turn, in an order that moves by one each round and is reversed every second
    round. A turn is one sample of the slowest step and up to five of the quicker ones.
    """
    estimates = {name: _calls_for(step, clock) for name, step in steps.items()}
    slowest = max(per_call * calls for per_call, calls in estimates.values())

    def turn(name: str) -> list[float]:
        per_call, calls = estimates[name]
        count = samples_in_a_turn(per_call * calls, slowest)
        return [_sample(steps[name], calls, clock) for _ in range(count)]

    return take_turns({name: partial(turn, name) for name in steps}, seconds, clock)


def samples_in_a_turn(sample: float, slowest: float) -> int:
    """As many samples as the slowest step takes for one, five at most."""
    return int(min(MOST_SAMPLES, max(1, slowest / sample)))


def take_turns(
    turns: Mapping[str, Callable[[], list[float]]], seconds: float, clock: Callable[[], float]
) -> dict[str, Times]:
    """Rounds in which everyone has a turn, which returns its samples, until the time is up."""
    times = {name: Times() for name in turns}
    names = list(turns)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start, turn = clock(), 0
        while turn < FEWEST_ROUNDS or clock() - start < seconds:
            shift = turn % len(names)
            order = names[shift:] + names[:shift]
            for name in order if turn % 2 == 0 else order[::-1]:
                samples = turns[name]()
                times[name].samples += samples
                times[name].rounds.append(statistics.median(samples))
            turn += 1
    finally:
        if was_enabled:
            gc.enable()
    return times


def ratio(slow: Times, quick: Times) -> float:
    """How many times longer `slow` takes: the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(slow.rounds, quick.rounds, strict=True))


def _calls_for(step: Callable[[], object], clock: Callable[[], float]) -> tuple[float, int]:
    """Seconds of one call, and how many calls make one sample."""
    once = max(_sample(step, 1, clock), 1e-9)
    calls = max(1, round(SHORTEST_SAMPLE / once))
    return once, calls


def _sample(step: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls
