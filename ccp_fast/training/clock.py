"""Where the time goes: seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PHASES = ("data", "forward", "loss", "backward", "projection", "optimizer", "reinitialisation", "evaluation")


class PhaseClock:
    """Wall seconds spent in each phase, and the CPU seconds of the process while any phase was running.

    CPU seconds hardly move when something else runs on the machine: equal-time comparisons go by them.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.cpu_seconds = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time what is inside the `with`; a phase inside another is taken out of the outer one."""
        wall, cpu = time.perf_counter(), time.process_time()
        inner_wall, inner_cpu = self.total, self.cpu_seconds
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - wall - (self.total - inner_wall)
            self.cpu_seconds += time.process_time() - cpu - (self.cpu_seconds - inner_cpu)

    @property
    def total(self) -> float:
        """Wall seconds over all phases."""
        return sum(self.seconds.values())

    def shares(self) -> dict[str, float]:
        """Fraction of the total by phase."""
        return {phase: seconds / (self.total or 1.0) for phase, seconds in self.seconds.items()}

    def state_dict(self) -> dict[str, object]:
        """So that a resumed run counts on."""
        return {"seconds": dict(self.seconds), "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Count on from `state_dict`."""
        seconds, cpu_seconds = state["seconds"], state["cpu_seconds"]
        assert isinstance(seconds, dict)
        assert isinstance(cpu_seconds, float)
        self.seconds, self.cpu_seconds = dict(seconds), cpu_seconds
