"""The machine a run was made on, and what else it was doing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ccp_fast
from ccp_fast._system.environment import describe

_BUSY = 0.05  # share of the cores that others may take before times mean little


def facts(threads: int) -> dict[str, Any]:
    """What each row keeps: device, versions, commit, date, threads."""
    info = ccp_fast.info()
    return {
        "device": info["cpu"],
        "cores": os.cpu_count(),
        "instructions": info["cpu_capability"],
        "threads": threads,
        "versions": {
            "ccp_fast": info["version"],
            "torch": torch.__version__,
            "pytorch_metric_learning": _version("pytorch-metric-learning"),
            "python": info["python"],
            "compiler": info["compiler"],
        },
        "commit": describe(threads)["git_commit"],
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass
class Load:
    """How busy others kept the cores while times were taken; Linux only, otherwise nothing is known."""

    at_start: float | None = None  # load average of the last minute
    seconds: float = 0.0  # watched, times cores
    others: float = 0.0  # processor seconds of others, stolen ones included

    @classmethod
    def now(cls) -> Load:
        """With the load average of this moment."""
        return cls(os.getloadavg()[0] if hasattr(os, "getloadavg") else None)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count what others use during the block."""
        busy, own, start = _busy_seconds(), time.process_time(), time.perf_counter()
        yield
        if busy is not None:
            own, elapsed = time.process_time() - own, time.perf_counter() - start
            self.others += max(0.0, (_busy_seconds() or busy) - busy - own)
            self.seconds += elapsed * (os.cpu_count() or 1)

    @property
    def share(self) -> float | None:
        """Of the cores that others took; None: not known."""
        return self.others / self.seconds if self.seconds else None

    def warning(self) -> str | None:
        """What to say about it, if anything."""
        if self.share is not None and self.share > _BUSY:
            return (
                f"The machine is busy: others took {self.share:.0%} of its cores while times were taken. "
                "Times and shares of the floor are off and ratios rough: run again when it is quiet."
            )
        if self.share is None and self.at_start is not None and self.at_start > _BUSY * (os.cpu_count() or 1):
            return f"The machine was busy before (load average {self.at_start:.1f}): times are rough."
        return None


def _busy_seconds() -> float | None:
    """Processor seconds used by anyone since the machine started."""
    try:
        fields = [float(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return float(user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
